"""What the server counts, for Prometheus; names end as those of other servers do, so that dashboards fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from isobit.engine.answer import Completion, Piece
from isobit.engine.engine import Engine

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
_WINDOW = 10  # seconds that a rate is of


class Rate:
    """How many a second, over the last whole seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._counts = [0] * (_WINDOW + 1)
        self._second = int(self._began)

    def add(self, count: int) -> None:
        """So many more, now."""
        self._turn()
        self._counts[self._second % len(self._counts)] += count

    def now(self) -> float:
        """A second; the one that is not over does not count."""
        self._turn()
        whole = sum(self._counts) - self._counts[self._second % len(self._counts)]
        return whole / max(1.0, min(float(_WINDOW), self._clock() - self._began))

    def _turn(self) -> None:
        now = int(self._clock())
        for second in range(max(self._second + 1, now - _WINDOW), now + 1):
            self._counts[second % len(self._counts)] = 0
        self._second = now


class Metrics:
    """Of one server.

    Args:
        model: its name, a label of everything.
        engine: asked when somebody looks.

    Attributes:
        registry: all of it.
        generated: tokens of answers a second.
        read: tokens of prompts a second.
    """

    def __init__(self, model: str, engine: Callable[[], Engine]) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.generated, self.read = Rate(), Rate()
        self._model = model
        self.registry.register(_OfEngine(model, engine))
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self._generation = self._counter("generation_tokens", "Tokens of answers.")
        self.rejected = self._counter("admission_rejections", "Requests that found the queue full.")
        self.restarts = self._counter("engine_restarts", "Times that the engine was begun anew after a fault.")
        self.media_refused = self._counter("media_refused", "Requests whose media could not be taken.")
        self._media, self._media_tokens = (
            Counter(f"isobit:{name}", help, ["model_name", "kind"], registry=self.registry)
            for name, help in (
                ("media", "Pictures, videos and sounds in prompts."),
                ("media_tokens", "Tokens of prompts that stand for them."),
            )
        )
        self._success = Counter(
            "isobit:request_success",
            "Answers that came to an end, by why.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self.aborted = self._counter("request_aborted", "Answers whose client went, or which failed.")
        self._first = self._histogram("time_to_first_token_seconds", "From the request to its first token.", _SECONDS)
        self._between = self._histogram("inter_token_latency_seconds", "Between two tokens of an answer.", _SECONDS)
        self._whole = self._histogram("e2e_request_latency_seconds", "From the request to its end.", _SECONDS)
        self._queued = self._histogram("request_queue_time_seconds", "Until the prompt was read.", _SECONDS)
        self._asked = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._given = self._histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)
        alive = Gauge("isobit:start_time_seconds", "When the server began.", ["model_name"], registry=self.registry)
        alive.labels(model).set_to_current_time()

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(f"isobit:{name}", help, ["model_name"], registry=self.registry).labels(self._model)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        found = Histogram(f"isobit:{name}", help, ["model_name"], registry=self.registry, buckets=buckets)
        return found.labels(self._model)

    def media(self, kind: str, tokens: int) -> None:
        """A medium was prepared for a prompt."""
        self._media.labels(self._model, kind).inc()
        self._media_tokens.labels(self._model, kind).inc(tokens)

    def watch(self, began: float) -> Watch:
        """For one answer whose request came at ``began`` (of ``time.perf_counter``)."""
        return Watch(self, began)

    def first(self, seconds: float) -> None:
        """An answer's first token came."""
        self._first.observe(seconds)

    def token(self, count: int, seconds: float | None) -> None:
        """Further tokens of an answer came; ``seconds`` since those before."""
        self._generation.inc(count)
        self.generated.add(count)
        if seconds is not None:
            self._between.observe(seconds)

    def end(self, done: Completion, first: float | None, seconds: float) -> None:
        """An answer came to its end."""
        usage = done.usage
        self._prompt.inc(usage.prompt_tokens)
        self.read.add(usage.prompt_tokens)
        self._success.labels(self._model, done.finish_reason).inc()
        self._whole.observe(seconds)
        self._asked.observe(usage.prompt_tokens)
        self._given.observe(usage.completion_tokens)
        if first is not None:
            self._queued.observe(max(0.0, first - done.timings.prefill_seconds))


class Watch:
    """Times one answer."""

    def __init__(self, metrics: Metrics, began: float) -> None:
        self._metrics, self._began = metrics, began
        self._first: float | None = None
        self._last = began

    def see(self, piece: Piece) -> None:
        """A piece of it came."""
        now = time.perf_counter()
        if piece.token_ids:
            if self._first is None:
                self._first = now - self._began
                self._metrics.first(self._first)
                self._metrics.token(len(piece.token_ids), None)
            else:
                self._metrics.token(len(piece.token_ids), now - self._last)
            self._last = now
        if piece.completion is not None:
            self._metrics.end(piece.completion, self._first, now - self._began)


class _OfEngine(Collector):
    """What the engine knows by itself, read when it is asked for."""

    def __init__(self, model: str, engine: Callable[[], Engine]) -> None:
        self._model, self._engine = model, engine

    def collect(self) -> Iterator[Metric]:
        """All of it."""
        engine = self._engine()
        scheduler, pool = engine.scheduler, engine.pool
        gauges = {
            "num_requests_running": (len(scheduler.running), "Sequences that hold blocks of the cache."),
            "num_requests_waiting": (len(scheduler.waiting), "Sequences that wait for blocks."),
            "kv_cache_usage_perc": (kv_usage(engine), "Share of the cache's blocks that sequences hold."),
            "kv_cache_blocks": (pool.count, "Blocks of the cache."),
        }
        counters = {
            "num_preemptions": (scheduler.preemptions, "Times that a sequence gave its blocks back."),
            "prefix_cache_queries": (pool.asked, "Tokens that were looked up in the cache."),
            "prefix_cache_hits": (pool.found, "Those of them that were there."),
        }
        for name, (value, help) in gauges.items():
            gauge = GaugeMetricFamily(f"isobit:{name}", help, labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge
        for name, (value, help) in counters.items():
            counter = CounterMetricFamily(f"isobit:{name}", help, labels=["model_name"])
            counter.add_metric([self._model], value)
            yield counter


def kv_usage(engine: Engine) -> float:
    """The share of the cache's blocks that sequences hold, from 0 to 1."""
    pool = engine.pool
    return (pool.count - pool.free) / pool.count if pool.count else 0.0
