"""The recipe distributes every table, by its first column; that it works is tested by ``nox -s citus``."""

import re
from pathlib import Path

from strands_psycopg.migrator import packaged_migrations
from support.catalog import TABLES

RECIPE = Path(__file__).with_name("citus.sql").read_text()

_DISTRIBUTED = re.compile(r"create_distributed_table\('strands_(\w+)', '(\w+)', colocate_with => '(\w+)'\)")
_CREATED = re.compile(r"^CREATE TABLE strands_(\w+) \(\s*(\w+) (.*?)^\)", re.M | re.S)


def test_every_table_is_distributed_by_its_first_column() -> None:
    columns = {table: column for each in packaged_migrations() for table, column, _ in _CREATED.findall(each.text)}
    assert {table: column for table, column, _ in _DISTRIBUTED.findall(RECIPE)} == columns
    assert set(TABLES) - set(columns) == set(re.findall(r"create_reference_table\('strands_(\w+)'\)", RECIPE))


def test_tables_to_which_others_refer_come_first_and_share_their_nodes() -> None:
    distributed = {table: beside for table, _, beside in _DISTRIBUTED.findall(RECIPE)}
    order = list(distributed)
    for each in packaged_migrations():
        for table, column, rest in _CREATED.findall(each.text):
            for parent in re.findall(r"REFERENCES strands_(\w+)", rest):
                assert order.index(parent) < order.index(table)
            if column == "session_id" and table != "sessions":
                assert distributed[table] == "strands_sessions"
