"""Strands' own FileSessionManager, which does not ask for its files to reach the disk."""

from strands.session.file_session_manager import FileSessionManager


class Contender:
    """Keeps sessions in a folder."""

    def __init__(self, dsn: str, folder: str) -> None:
        self._folder = folder

    def manager(self, session_id: str) -> FileSessionManager:
        """Return a session manager."""
        return FileSessionManager(session_id, storage_dir=self._folder)

    def close(self) -> None:
        """Leave the folder to whoever gave it."""
