"""The blocks of a paged key-value cache: who holds them, and which can be read again. Numbers only, no memory.

A block holds the keys and values of ``size`` tokens in a row. It is *written* while its request fills it, and then only
that request has it. Once it is full and computed it can be *shared*: its key names its tokens and all in front of them,
so whoever needs the same ones reads the same block, and nothing is copied. When nobody holds it any more it stays
findable until its place is needed; the one that was free longest goes first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence

BEGIN = b""  # the key in front of the first block

_DIGEST = 32  # bytes: nobody finds two texts of one key
_NAMED = b"isobit sights"  # no key of tokens alone is one of these


def key_after(before: bytes, tokens: Sequence[int], named: bytes = b"") -> bytes:
    """The key of a block with these tokens, behind the block of the key ``before``.

    Args:
        named: what tells the tokens from others with the same ids (:meth:`isobit.engine.sights.Sights.named`).
    """
    made = hashlib.blake2b(before + array("q", tokens).tobytes(), digest_size=_DIGEST)
    if named:
        made = hashlib.blake2b(made.digest() + named, digest_size=_DIGEST, person=_NAMED)
    return made.digest()


def blocks_for(tokens: int, size: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // size)


class BlockPool:
    """Blocks ``0 .. count - 1``.

    Args:
        count: how many there are at first.
        size: tokens of a block.
        keeps: whether full blocks can be found again.

    Attributes:
        asked, found: tokens that were looked up, and those of them that were there.
    """

    def __init__(self, count: int, size: int, *, keeps: bool = True) -> None:
        if count < 0 or size < 1:
            raise ValueError(f"there are no {count} blocks of {size} tokens")
        self.count, self.size, self.keeps = count, size, keeps
        self.asked = self.found = 0
        self._holders = [0] * count
        self._empty = list(
            range(count - 1, -1, -1)
        )  # nobody holds them, nothing of use is in them; the last goes first
        self._idle: dict[int, None] = {}  # nobody holds them, they can be found; the first goes first
        self._by_key: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._empty) + len(self._idle)

    def holders(self, block: int) -> int:
        """How many requests hold a block."""
        return self._holders[block]

    def look_up(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of these keys in order, up to the first that is not there. Nobody holds them yet by this."""
        found: list[int] = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of these blocks nobody holds: so many fewer are free once they are shared."""
        return sum(self._holders[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks that were looked up, once more."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._idle[block]
            self._holders[block] += 1

    def take(self, count: int) -> list[int] | None:
        """So many blocks to write in, held once; None if there are not so many, and then nothing changes."""
        if count > self.free:
            return None
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        if self._empty:
            block = self._empty.pop()
        else:
            block = next(iter(self._idle))
            del self._idle[block]
            del self._by_key[self._keys.pop(block)]
        self._holders[block] = 1
        return block

    def publish(self, block: int, key: bytes) -> None:
        """A held block is full and computed: it can be found from now on, unless another with its key can already."""
        if self._holders[block] < 1:
            raise ValueError(f"nobody holds block {block}: what is in it is not known")
        if self.keeps and key not in self._by_key and block not in self._keys:
            self._by_key[key] = block
            self._keys[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks of a sequence back, each once.

        Their order is that of the sequence: of those that are then free, its last ones go first, for the first ones are
        what other requests may share.
        """
        for block in reversed(blocks):
            if self._holders[block] < 1:
                raise ValueError(f"block {block} is given back by somebody who does not hold it")
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._keys:
                    self._idle[block] = None
                else:
                    self._empty.append(block)

    def grow(self, count: int) -> None:
        """There are ``count`` blocks from now on, no fewer than before."""
        self._empty[:0] = range(count - 1, self.count - 1, -1)
        self._holders += [0] * (count - self.count)
        self.count = count

    def forget(self) -> None:
        """No block can be found any more; those that are held stay with their holders."""
        self._empty.extend(reversed(self._idle))
        self._idle.clear()
        self._by_key.clear()
        self._keys.clear()
