"""Those who do the same work: each a module with a class ``Contender``, in a Python of its own if it is a peer.

What a peer's Python runs of this package needs nothing but Strands and the peer.
"""
