"""What an application stores about a session: its owner, its title, and metadata by which it is looked up."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple, TypeAlias

from strands.types.session import Session

from strands_psycopg.arguments import check_id, check_text
from strands_psycopg.codec import decode, encode
from strands_psycopg.payload import Columns, Payloads

_MAX_TITLE_LENGTH = 1_000


class Unchanged(Enum):
    """The type of ``UNCHANGED``."""

    UNCHANGED = "UNCHANGED"

    def __repr__(self) -> str:
        return self.name


# The default of arguments for which None is a value.
UNCHANGED: Final = Unchanged.UNCHANGED

Metadata: TypeAlias = dict[str, Any]


@dataclass
class AnnotatedSession(Session):
    """A Strands session with an owner, a title or metadata.

    Attributes:
        owner: Whose session it is, as the application names its users; None if nobody's.
        title: Its title.
        metadata: What the application looks it up by, a JSON object.
    """

    owner: str | None = None
    title: str | None = None
    metadata: Metadata | None = None


class Annotations(NamedTuple):
    """The owner, title and metadata of a session; each may be None.

    Those that users pass must be checked (``check``).
    """

    owner: str | None = None
    title: str | None = None
    metadata: Metadata | None = None

    @classmethod
    def of(cls, session: Session) -> "Annotations":
        """Return the annotations of a session."""
        if isinstance(session, AnnotatedSession):
            return cls(session.owner, session.title, session.metadata)
        return cls()

    @classmethod
    def decode(cls, columns: Sequence[str | None], payloads: Payloads, session_id: str) -> "Annotations":
        """Decode the columns that ``{annotations_of_t}`` or ``{annotations_of_s}`` selects.

        Raises:
            PayloadCodecError: The payload codec failed.
        """
        owner, title, metadata, metadata_exact = columns
        return cls(
            owner,
            None if title is None else payloads.decode_title(title, session_id),
            None if metadata is None else decode(metadata, metadata_exact),
        )

    def check(self) -> "Annotations":
        """Return the same annotations, if they can be stored.

        Raises:
            ValueError: One of them cannot be; the text names it.
            TypeError: ``metadata`` holds something that JSON cannot.
        """
        check_owner(self.owner)
        if self.title is not None:
            check_text("title", self.title, 0, _MAX_TITLE_LENGTH)
        encode_metadata(self.metadata)
        return self

    def parameters(self, payloads: Payloads, session_id: str) -> dict[str, object]:
        """Return the parameters with which a statement stores them.

        Raises:
            ValueError: As ``check``.
            TypeError: As ``check``.
            PayloadCodecError: The payload codec failed.
        """
        self.check()
        metadata, metadata_exact = encode_metadata(self.metadata)
        return {
            "owner": check_owner(self.owner),
            "title": None if self.title is None else payloads.encode_title(self.title, session_id),
            "metadata": metadata,
            "metadata_exact": metadata_exact,
        }

    def annotated(self, session: Session) -> Session:
        """Return a session with these annotations; the same object if there are none."""
        return session if self == Annotations() else AnnotatedSession(**vars(session), **self._asdict())

    def changes_of(self, session: Session) -> dict[str, Any]:
        """Return the title and metadata, unless they are None or the session has them already."""
        stored = Annotations.of(session)
        changes: dict[str, Any] = {}
        if self.title is not None and self.title != stored.title:
            changes["title"] = self.title
        # Not as Python compares dicts: 1 == True, and the order of keys counts.
        if self.metadata is not None and encode_metadata(self.metadata) != encode_metadata(stored.metadata):
            changes["metadata"] = self.metadata
        return changes


def check_owner(owner: object) -> str | None:
    """Return an owner if it is valid, or None.

    Raises:
        ValueError: It is not a string of 1 to 255 characters without NUL or lone surrogates.
    """
    return None if owner is None else check_id("owner", owner)


def encode_metadata(metadata: object) -> Columns | tuple[None, None]:
    """Return the texts of the columns ``metadata`` and ``metadata_exact``.

    Raises:
        ValueError: It is neither a dict nor None, or it cannot be stored.
        TypeError: It holds something that JSON cannot.
    """
    if metadata is None:
        return None, None
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata must be a dict, not {type(metadata).__name__}")
    try:
        return encode(metadata)
    except (ValueError, TypeError) as error:
        raise type(error)(f"metadata: {error}") from error
