"""SQLAlchemy's URLs of databases."""

import shlex
from urllib.parse import urlencode


def url(driver: str, dsn: str) -> str:
    """Return the URL for a DSN of the form key=value."""
    options = dict(part.split("=", 1) for part in shlex.split(dsn))
    database = options.pop("dbname")
    user = options.pop("user")
    return f"{driver}://{user}@/{database}?{urlencode(options)}"
