"""Parts of statements that several tables' statements share."""

# A session's updated_at is kept to the minute, so that most writes leave its row alone.
ACTIVE = """
    active AS (
        UPDATE {sessions} SET updated_at = now()
        WHERE session_id = %(session_id)s AND updated_at < now() - interval '1 minute'
    )"""


def times(row: str) -> str:
    """Name two columns: the row's times as Strands writes them, the second NULL if it equals the first."""
    return """
    to_char({row}.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
    to_char(NULLIF({row}.updated_at, {row}.created_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
    """.replace("{row}", row)
