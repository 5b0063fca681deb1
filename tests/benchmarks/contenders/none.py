"""Agents without sessions: what a turn costs anyway."""


class Contender:
    """Keeps nothing."""

    def __init__(self, dsn: str, folder: str) -> None:
        pass

    def manager(self, session_id: str) -> None:
        """Return no session manager."""

    def close(self) -> None:
        """Return nothing: no figures are kept."""
