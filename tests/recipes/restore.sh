#!/bin/sh
# Restore what backup.sh has dumped into a database without such tables, all of it or nothing: restore.sh DSN FILE
#
# The tables become those of the role that restores, and grants are made anew (see grants.sql).
set -eu
pg_restore --dbname="$1" --exit-on-error --single-transaction --no-owner --no-privileges "$2"
psql --dbname="$1" --quiet --command='ANALYZE'
