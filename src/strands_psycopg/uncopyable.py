"""Objects whose copies could not work, since they have connections, or are the only writer of something."""

from typing import NoReturn


class Uncopyable:
    """Base class of objects that ``copy`` and ``pickle`` refuse, with a ``TypeError`` that says what to do instead."""

    # Completes "A ... cannot be copied or pickled, since it ...".
    _why_uncopyable: str

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be copied or pickled, since it {self._why_uncopyable}")
