#!/bin/sh
# Dump the tables of this package to a file, while agents go on: backup.sh DSN FILE
#
# The dump is of one moment, and a turn is several transactions: a session in the middle of one is dumped with half of
# it, and goes on from there as after a crash. Leases are left out, as their holders will be gone.
#
# pg_dump must be of the server's version or newer, needs a direct connection or a pooler in session mode, and a role
# that sees every row (BYPASSRLS if policies are in force). For tables in a schema of their own say --schema=strands.
set -eu
pg_dump --dbname="$1" --format=custom --file="$2" --table='strands_*' --exclude-table-data='strands_leases'

# Point in time: with pg_basebackup and archived WAL, or a managed server's own, nothing here needs to be prepared.
# Every acknowledged write is there up to the moment that is chosen. Leases come back with times that have passed.
# Whichever way tables are set back, restart what runs agents: those that live on hold newer sessions than the tables,
# and their writes are refused (SessionConflictError), never mixed in.
