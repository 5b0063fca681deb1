"""The rules by which a statement runs unchanged where the tables are distributed, as on Citus."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from pglast import ast, enums, parse_sql

from strands_psycopg.migrator import optional_migrations, packaged_migrations

# Of pglast's nodes, whose attributes may all be None as far as their types tell.
Node: TypeAlias = Any

_CREATED = re.compile(r"^CREATE (?:TABLE strands_(\w+) \(\s*(\w+)|VIEW strands_(\w+) )", re.M)

# Of functions that are stable or volatile, those that statements use or might.
_TIMES = {"now", "clock_timestamp", "statement_timestamp", "transaction_timestamp", "timeofday"}
_CHANGING = {*_TIMES, "to_char", "to_jsonb", "to_json", "row_to_json", "random", "gen_random_uuid", "current_setting"}

_PARAMETER = re.compile(r"%\((\w+)\)s|%s")


@lru_cache
def distribution_columns() -> Mapping[str, str]:
    """Return the column by which each table is distributed, the first of its columns; views are by session.

    Both are without their prefix. The ledger of migrations is not among them: it is a reference table.
    """
    migrations = [*packaged_migrations(), *optional_migrations()]
    found = [match for each in migrations for match in _CREATED.findall(each.text)]
    return {table or view: column or "session_id" for table, column, view in found}


def violations(statement: str, prefix: str = "strands_") -> list[str]:
    """Return the rules that a statement breaks; its tables have a schema, and its parameters are psycopg's."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        names.append(match[1] or "")
        return f"${len(names)}"

    text = _PARAMETER.sub(number, statement).replace("%%", "%")
    return [each for [raw] in [parse_sql(text)] for each in _Checker(names, prefix).check(raw.stmt)]


class _Checker:
    """Checks one statement.

    Args:
        names: The names of its parameters, in order.
        prefix: That of the names of its tables.
    """

    def __init__(self, names: Sequence[str], prefix: str) -> None:
        self._names = names
        self._prefix = prefix

    def check(self, statement: Node) -> Iterator[str]:
        if _is(statement, ast.DeclareCursorStmt):
            statement = statement.query
        nodes = list(_walk(statement))
        for node in nodes:
            match node:
                case ast.SelectStmt():
                    yield from self._check_select(node)
                case ast.InsertStmt():
                    yield from self._check_insert(node)
                case ast.UpdateStmt():
                    yield from self._check_tables(node, [node.relation, *(node.fromClause or ())])
                    yield from self._check_change(node, node.targetList or ())
                case ast.DeleteStmt():
                    yield from self._check_tables(node, [node.relation, *(node.usingClause or ())])
                    yield from self._check_change(node, ())
                case ast.ColumnRef() if _column(node) == "ctid":
                    yield "ctid"
        if any(_is(node, ast.InsertStmt) and not _values(node) for node in nodes):
            # Its rows are sent to all nodes, so the write becomes one of all nodes.
            for node in nodes:
                if _is(node, ast.CommonTableExpr) and _is(node.ctequery, ast.SelectStmt):
                    yield f"{node.ctename} selects in a CTE beside INSERT ... SELECT"
            # So is what a CTE has stored, unless it is no CTE that stores it, or the rows come from a table, so that
            # their node is known.
            written = {
                node.ctename
                for node in nodes
                if _is(node, ast.CommonTableExpr) and not _is(node.ctequery, ast.SelectStmt)
            }
            for node in nodes:
                if not _is(node, ast.InsertStmt) or node is statement or self._has_node(node):
                    continue
                if _tables(node.selectStmt) & written:
                    yield f"{self._table(node.relation)} by INSERT ... SELECT of what a CTE has written"
        # What an INSERT ... SELECT in the same statement stores has a write id, by which a late one is told.
        elif any(_is(node, ast.UpdateStmt, ast.DeleteStmt) and self._has_deadline(node) for node in nodes):
            yield "UPDATE or DELETE compares the deadline with the coordinator's time"
        if _is(statement, ast.SelectStmt) and statement.lockingClause and _calls(statement.whereClause, _TIMES):
            yield "a SELECT locks rows by a time that may be another node's"
        counts = _is(statement, ast.InsertStmt) and not _values(statement) and not _returned(statement)
        if counts and statement.onConflictClause and statement.onConflictClause.targetList:
            yield "the row count of INSERT ... SELECT ... ON CONFLICT is that of selected rows"

    def _check_select(self, select: Node) -> Iterator[str]:
        if select.op == enums.SetOperation.SETOP_NONE:
            if not select.targetList and not select.valuesLists:
                yield "an empty select list"
            yield from self._check_tables(select, select.fromClause or ())

    def _check_insert(self, insert: Node) -> Iterator[str]:
        table = self._table(insert.relation)
        column = distribution_columns().get(table)
        columns = [each.name for each in insert.cols or ()]
        if column is not None and column not in columns:
            yield f"{column} of {table} is not inserted"
        elif column is not None:
            index = columns.index(column)
            for value in self._inserted(insert.selectStmt, index):
                if not self._is_bound(value, insert.selectStmt):
                    yield f"{table} by no parameter for {column}"
        if any(_is(node, ast.SubLink) for row in _values(insert) for node in _walk(row)):
            yield "a subquery in VALUES"
        conflict = insert.onConflictClause
        if conflict is not None and conflict.targetList:
            yield from _check_immutable(conflict.targetList, "ON CONFLICT")
            yield from _check_immutable(conflict.whereClause, "ON CONFLICT")
        yield from _check_immutable(_returned(insert), "RETURNING")

    def _check_change(self, change: Node, targets: Sequence[Node]) -> Iterator[str]:
        yield from _check_immutable(_returned(change), "RETURNING")
        for part in (targets, change.whereClause):
            for node in _walk(part):
                if _is(node, ast.FuncCall) and _name(node) == "to_char" and _has_column(node):
                    yield "UPDATE or DELETE calls a stable function of a column"
                if _is(node, ast.A_Expr) and _operator(node) in "+-" and _has_column(node) and _is_time(node):
                    yield "UPDATE or DELETE computes with times of a column"
        if _is(change, ast.DeleteStmt):
            skipping = enums.LockWaitPolicy.LockWaitSkip
            if any(_is(node, ast.LockingClause) and node.waitPolicy == skipping for node in _walk(change)):
                yield "DELETE of rows that a subquery finds with SKIP LOCKED"

    def _has_node(self, insert: Node) -> bool:
        """Whether an INSERT ... SELECT has the node of a table, as ``_check_tables`` makes sure."""
        return any(
            self._table(source) in distribution_columns() for source in _sources(insert.selectStmt.fromClause or ())
        )

    def _has_deadline(self, change: Node) -> bool:
        parameters = [node for node in _walk(change) if _is(node, ast.ParamRef)]
        return any(self._names[each.number - 1] == "deadline" for each in parameters)

    def _check_tables(self, query: Node, sources: Sequence[Node]) -> Iterator[str]:
        """Check that each table of a query, without those of its subqueries, has its column equal to a parameter."""
        for source in _sources(sources):
            table = self._table(source)
            column = distribution_columns().get(table)
            if column is not None and not self._is_one_shard(query, source, column):
                yield f"{table} by no parameter for {column}"

    def _is_one_shard(self, query: Node, source: Node, column: str) -> bool:
        alias = source.alias.aliasname if source.alias else source.relname
        equal = enums.A_Expr_Kind.AEXPR_OP
        for each in _conditions(query):
            if _is(each, ast.A_Expr) and each.kind == equal and _operator(each) == "=":
                for side, other in ((each.lexpr, each.rexpr), (each.rexpr, each.lexpr)):
                    if _refers(side, alias, column) and _is_parameter(other):
                        return True
        return False

    def _is_bound(self, value: Node, select: Node) -> bool:
        """Whether an inserted value is a parameter, or a column that equals one."""
        if _is_parameter(value):
            return True
        if not _is(value, ast.ColumnRef) or len(value.fields) != 2:
            return False
        alias, column = (field.sval for field in value.fields)
        conditions = [each for each in _conditions(select) if _is(each, ast.A_Expr)]
        return any(_refers(each.lexpr, alias, column) and _is_parameter(each.rexpr) for each in conditions)

    def _inserted(self, select: Node, index: int) -> list[Node]:
        if select.valuesLists:
            return [row[index] for row in select.valuesLists]
        return [select.targetList[index].val]

    def _table(self, source: Node) -> str:
        """Return a table's name without its prefix; that of a CTE is empty, since it has no schema."""
        return source.relname.removeprefix(self._prefix) if source.schemaname else ""


def _check_immutable(part: object, where: str) -> Iterator[str]:
    for node in _walk(part):
        if _is(node, ast.FuncCall) and _name(node) in _CHANGING:
            yield f"{_name(node)}() in {where}"
        elif _is(node, ast.SQLValueFunction):
            yield f"the current time or user in {where}"
        elif _is(node, ast.SubLink):
            yield f"a subquery in {where}"
        elif _is(node, ast.TypeCast) and _is_time(node.arg):
            yield f"a cast of a time in {where}"
        elif _is(node, ast.A_Expr) and _operator(node) in "+-" and _is_time(node) != _is_difference(node):
            yield f"a time and an interval in {where}"


def _walk(part: object) -> Iterator[Node]:
    """Yield each node, those of subqueries included."""
    if isinstance(part, ast.Node):
        yield part
        for name in part:
            yield from _walk(getattr(part, name))
    elif isinstance(part, tuple | list):
        for each in part:
            yield from _walk(each)


def _is(node: Node, *kinds: type[ast.Node]) -> bool:
    return isinstance(node, kinds)


def _sources(parts: Sequence[Node]) -> Iterator[Node]:
    """Yield the tables and CTEs of a FROM clause."""
    for part in parts:
        if _is(part, ast.RangeVar):
            yield part
        elif _is(part, ast.JoinExpr):
            yield from _sources([part.larg, part.rarg])


def _tables(part: object) -> set[str]:
    """Return the names of the tables and CTEs that a part of a statement refers to."""
    return {node.relname for node in _walk(part) if _is(node, ast.RangeVar)}


def _conditions(query: Node) -> Iterator[Node]:
    """Yield what must hold for each row of a query."""
    parts = [query.whereClause]
    sources = list(getattr(query, "fromClause", None) or getattr(query, "usingClause", None) or ())
    while sources:
        source = sources.pop()
        if _is(source, ast.JoinExpr):
            parts.append(source.quals)
            sources += [source.larg, source.rarg]
    while parts:
        part = parts.pop()
        if _is(part, ast.BoolExpr) and part.boolop == enums.BoolExprType.AND_EXPR:
            parts += part.args
        elif part is not None:
            yield part


def _returned(query: Node) -> Sequence[Node]:
    returning = query.returningClause
    return returning.exprs if returning else ()


def _values(insert: Node) -> Sequence[Node]:
    return insert.selectStmt.valuesLists or ()


def _is_parameter(node: Node) -> bool:
    while _is(node, ast.TypeCast):
        node = node.arg
    return _is(node, ast.ParamRef)


def _refers(node: Node, alias: str, column: str) -> bool:
    if not _is(node, ast.ColumnRef) or _column(node) != column:
        return False
    return len(node.fields) == 1 or node.fields[-2].sval == alias


def _column(node: Node) -> str | None:
    return getattr(node.fields[-1], "sval", None)


def _name(call: Node) -> str:
    return str(call.funcname[-1].sval)


def _operator(expression: Node) -> str:
    return str(expression.name[-1].sval)


def _calls(part: object, names: set[str]) -> bool:
    return any(_is(node, ast.FuncCall) and _name(node) in names for node in _walk(part))


def _has_column(part: Node) -> bool:
    return any(_is(node, ast.ColumnRef) for node in _walk(part))


def _is_time(part: Node) -> bool:
    """Whether an expression has a column that is a time, by its name."""
    return any(_is(node, ast.ColumnRef) and (_column(node) or "").endswith("_at") for node in _walk(part))


def _is_difference(expression: Node) -> bool:
    """Whether it subtracts one column that is a time from another, which is immutable."""
    return _operator(expression) == "-" and _is_time(expression.lexpr) and _is_time(expression.rexpr)
