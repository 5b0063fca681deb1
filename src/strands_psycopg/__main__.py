"""``python -m strands_psycopg`` is the command line."""

import sys

from strands_psycopg.cli import main

if __name__ == "__main__":
    sys.exit(main())
