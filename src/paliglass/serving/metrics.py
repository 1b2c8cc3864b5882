"""What a server tells of itself, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server; tokens a second are the rate of `paliglass_generated_tokens`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "paliglass_requests", "HTTP requests.", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "paliglass_request_seconds",
            "From a request's arrival to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "paliglass_time_to_first_token_seconds",
            "From a prompt's place in line to its first token.",
            buckets=SECONDS,
            registry=registry,
        )
        self._rows = Histogram(
            "paliglass_batch_rows",
            "Rows of each decoding step.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self._tokens = Counter("paliglass_generated_tokens", "Tokens said.", registry=registry)
        self._prompts = Counter("paliglass_prompts", "Prompts taken in.", registry=registry)
        self._known = Counter(
            "paliglass_prompts_cached", "Prompts that did not have to be run.", registry=registry
        )

    def watch(
        self,
        queue_length: Callable[[], float],
        running_rows: Callable[[], float],
        cache_bytes: Mapping[str, Callable[[], float]],
    ) -> None:
        """Adds gauges of an engine's line, its rows, and its caches by name."""

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"paliglass_{name}", text, labels, registry=self.registry)

        gauge("queue_length", "Requests in line.").set_function(queue_length)
        gauge("running_rows", "Rows being answered.").set_function(running_rows)
        cache = gauge("cache_bytes", "Bytes of what is kept.", "cache")
        for name, size in cache_bytes.items():
            cache.labels(name).set_function(size)

    def request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def rows(self, count: int) -> None:
        self._rows.observe(count)

    def tokens(self, count: int) -> None:
        self._tokens.inc(count)

    def prefills(self, count: int, known: int) -> None:
        self._prompts.inc(count)
        self._known.inc(known)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
