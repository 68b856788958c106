"""Which sessions take part in something: a share of them, drawn by their ids.

A draw gives the same answer in every worker, on every machine and after every restart. Draws of different purposes,
and the buckets of the session store, are independent of each other: hence a keyed BLAKE2, not the store's CRC, which is
linear, so that a prefix would only permute its buckets. A larger share keeps all sessions of a smaller one.
"""

from hashlib import blake2b


class SessionDraw:
    """The sessions that a share is made of: `session_id in draw`. About a microsecond."""

    def __init__(self, purpose: str, share: float) -> None:
        """`purpose` makes the draw independent of others; `share` is 0 to 1."""
        self._key = blake2b(purpose.encode(), digest_size=32).digest()
        self._end = int(share * 2**64)

    def __contains__(self, session_id: str) -> bool:
        """Whether the session is drawn."""
        if not self._end:
            return False
        return int.from_bytes(blake2b(session_id.encode(), digest_size=8, key=self._key).digest(), "big") < self._end
