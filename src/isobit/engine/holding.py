"""What a request holds of the pool of blocks: the keys that its blocks are found by, and those it needs no longer."""

from __future__ import annotations

from isobit.engine.blocks import BEGIN, BlockPool, blocks_for, key_after
from isobit.engine.request import Request, Running
from isobit.errors import CapacityError, UsageError


def require_room(request: Request, size: int, count: int) -> None:
    """A request must be one that ``count`` blocks of ``size`` tokens can hold.

    Raises:
        UsageError: it has no prompt, or may not answer.
        CapacityError: the whole cache is too small for it.
    """
    if not request.prompt or request.most < 0 or (request.most == 0 and request.scored is None):
        raise UsageError(f"request {request.id} has {len(request.prompt)} tokens and may answer {request.most}")
    if request.scored is not None and request.scored < 1:
        raise UsageError(f"request {request.id} asks for the score of token {request.scored}; the first has none")
    if blocks_for(request.longest, size) > count:
        room = count * size - len(request.prompt) + 1
        instead = f"ask for at most {room} tokens" if room > 0 else "shorten the prompt"
        raise CapacityError(
            f"a prompt of {len(request.prompt)} tokens and {request.most} tokens of answer never fit the key-value "
            f"cache, which holds {count * size} tokens ({count} blocks of {size}): {instead}, or give the cache "
            "more memory"
        )


def key_of(state: Running, number: int, size: int) -> bytes:
    """The key of a request's block, of ``size`` tokens; made when it or one behind it is asked for, and once."""
    keys = state.keys
    while len(keys) <= number:
        begin = len(keys) * size
        sights = state.request.sights
        named = b"" if sights is None else sights.named(begin, begin + size)
        keys.append(key_after(keys[-1] if keys else BEGIN, state.tokens[begin : begin + size], named))
    return keys[number]


def publish(pool: BlockPool, state: Running, first: int, end: int) -> None:
    """Blocks that tokens from place ``first`` up to ``end`` have filled can be found."""
    if not (pool.keeps and state.request.reuses):
        return
    for place in range(first // pool.size, end // pool.size):
        pool.publish(state.blocks[place], key_of(state, place, pool.size))


def give_back(pool: BlockPool, state: Running, end: int, window: int) -> None:
    """Gives back the blocks that no token from place ``end`` on attends to, where it sees ``window`` tokens."""
    count = min(max(0, end - window + 1) // pool.size, len(state.blocks) - 1)
    if count > state.passed:
        pool.release(state.blocks[state.passed : count])
        state.blocks[:count] = [state.blocks[count]] * count
        state.passed, state.listed = count, ()
