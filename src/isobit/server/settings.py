"""What a server is told when it starts; no more than values."""

from __future__ import annotations

from dataclasses import dataclass

from isobit import media


@dataclass(frozen=True)
class Limits:
    """What requests may cost.

    Attributes:
        body: bytes of a body.
        prompts: of one request.
        choices: ``n``, at most.
        waiting: sequences that wait at most, beside those that the engine works on.
        silence: seconds that the next part of a body may take to come.
        header: bytes of all headers of a request.
        top_logprobs: of a chat, as OpenAI has it.
        ping: seconds without a token behind which a stream says that it is alive.
    """

    body: int = 32 << 20
    prompts: int = 1024
    choices: int = 128
    waiting: int = 1024
    silence: float = 30.0
    header: int = 16 << 10
    top_logprobs: int = 20
    ping: float = 15.0


@dataclass(frozen=True)
class Settings:
    """How a server serves.

    Attributes:
        names: of the model; the first is the one that replies give.
        keys: one of which every request needs; none for everybody.
        hosts: names by which requests may call it, lower case, without ports; None for any.
        origins: of web pages elsewhere that may ask.
        limits: what requests may cost.
        media: what pictures, videos and sounds in them may cost.
        remote: fetch media from public addresses, which requests name.
        drain: seconds that answers under way get when it ends.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...] = ()
    hosts: frozenset[str] | None = frozenset({"localhost", "127.0.0.1", "::1"})
    origins: frozenset[str] = frozenset()
    limits: Limits = Limits()
    media: media.Limits = media.LIMITS
    remote: bool = False
    drain: float = 30.0
