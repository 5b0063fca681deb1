"""Payload codecs: one that scrambles what it is given, and keeps what it was called for."""

import base64
import pickle
import threading
from collections import Counter
from typing import Any

from strands_psycopg import PayloadContext


class ScramblingCodec:
    """Makes documents unreadable, and refuses one that is read as another than it was stored as.

    Attributes:
        encoded: How often each document was encoded.
        decoded: How often each was decoded.
        threads: The threads in which it was called.
    """

    def __init__(self) -> None:
        self.encoded: Counter[PayloadContext] = Counter()
        self.decoded: Counter[PayloadContext] = Counter()
        self.threads: set[int] = set()

    def encode(self, document: Any, context: PayloadContext) -> Any:
        self.encoded[context] += 1
        self.threads.add(threading.get_ident())
        data = base64.b64encode(pickle.dumps((context, document))[::-1])
        return data if context.kind == "storage" else {"scrambled": data.decode()}

    def decode(self, document: Any, context: PayloadContext) -> Any:
        self.decoded[context] += 1
        self.threads.add(threading.get_ident())
        data = document if context.kind == "storage" else document["scrambled"]
        stored_as, decoded = pickle.loads(base64.b64decode(data)[::-1])
        assert stored_as == context, f"{stored_as} was read as {context}"
        return decoded

    def clear(self) -> None:
        """Forget the calls."""
        self.encoded.clear()
        self.decoded.clear()
        self.threads.clear()
