"""Many kernels for many targets: what the cache does not hold is compiled, several processes at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from isobit.kernels.gpu.compile.processes import compilers, triton_version
from isobit.kernels.gpu.compile.request import Request
from isobit.proof import worker
from isobit.proof.evidence import Evidence, failures
from isobit.proof.store import Store


@dataclass(frozen=True)
class Claim:
    """What a row says about one target, ready to be compiled and checked.

    Attributes:
        variant: name of the row.
        target: name of the target.
        request: what to compile.
        promises: regular expressions of opcodes that the hot loop must show.
        shared_limit: bytes of shared memory that a block may have there.
    """

    variant: str
    target: str
    request: Request
    promises: tuple[str, ...]
    shared_limit: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a claim: evidence, or the compiler's error; ``problems`` is empty if the claim holds."""

    claim: Claim
    evidence: Evidence | None
    problems: tuple[str, ...]
    cached: bool

    @property
    def name(self) -> str:
        """The variant and the target, for messages."""
        return f"{self.claim.variant} on {self.claim.target}"


def prove(
    claims: Iterable[Claim],
    store: Store,
    *,
    processes: int,
    listings: Path | None = None,
    progress: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Checks every claim, in the order given.

    Args:
        claims: what to check.
        store: where evidence is kept between runs.
        processes: how many compile at once.
        listings: a folder for the disassembly of every kernel; then the cache is not asked.
        progress: called as each claim is decided, in the order in which they are.

    Raises:
        Unsupported: Triton is not installed.
        CapacityError: the cache cannot be written.
    """
    version = triton_version()
    claims = list(claims)
    keys = [claim.request.key(version) for claim in claims]
    outcomes: dict[int, Outcome] = {}
    missing: dict[str, list[int]] = {}
    for i, (claim, key) in enumerate(zip(claims, keys, strict=True)):
        stored = store.get(key) if listings is None else None
        if stored is None:
            missing.setdefault(key, []).append(i)
        else:
            outcomes[i] = _judge(claim, worker.Answer(stored, None), cached=True)
            progress(outcomes[i])
    requests = {key: (claims[where[0]].request, _listing(listings, claims[where[0]])) for key, where in missing.items()}
    for key, answer in _answers(requests, processes):
        if answer.evidence is not None:
            store.put(key, answer.evidence)
        for i in missing[key]:
            outcomes[i] = _judge(claims[i], answer, cached=False)
            progress(outcomes[i])
    return [outcomes[i] for i in range(len(claims))]


def _judge(claim: Claim, answer: worker.Answer, *, cached: bool) -> Outcome:
    if answer.evidence is None:
        return Outcome(claim, None, (f"does not compile: {answer.error}",), cached)
    problems = failures(answer.evidence, claim.promises, shared_limit=claim.shared_limit)
    return Outcome(claim, answer.evidence, problems, cached)


def _listing(folder: Path | None, claim: Claim) -> str | None:
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{claim.variant}.{claim.target}.s")


Requests = Mapping[str, tuple[Request, str | None]]


def _answers(requests: Requests, processes: int) -> Iterator[tuple[str, worker.Answer]]:
    """Every request's answer as it comes. A request that brings its process down is found out alone, and named."""
    answered = set()
    if requests:
        with compilers(min(processes, len(requests))) as pool:
            for key, answer in _run(pool, requests):
                answered.add(key)
                yield key, answer
    for key in requests.keys() - answered:
        with compilers(1) as pool:
            alone = dict(_run(pool, {key: requests[key]}))
        yield (
            key,
            alone.get(key, worker.Answer(None, "the compiler ended its process (see `LLVM ERROR` above, if any)")),
        )


def _run(pool: ProcessPoolExecutor, requests: Requests) -> Iterator[tuple[str, worker.Answer]]:
    """Answers until a process ends that should not have: then those that are missing stay away."""
    futures: dict[Future[worker.Answer], str] = {}
    try:
        for key, (request, listing) in requests.items():
            futures[pool.submit(worker.answer, request, listing)] = key
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        return
