"""What /metrics shows to Prometheus."""

import time

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counters of a server; `watch` adds what a worker and its engine say of themselves.

    Attributes:
      started: seconds since 1970.
    """

    def __init__(self):
        self.started, self._registry = time.time(), CollectorRegistry()
        own = dict(registry=self._registry)
        self._requests = Counter("kosmos_requests", "Requests answered", ["path", "status"], **own)
        self._first = Histogram("kosmos_first_token_seconds", "Until the first token", buckets=SECONDS, **own)
        self._compiles = Counter("kosmos_compiles", "Programs compiled since the start", **own)
        jax.monitoring.register_event_duration_secs_listener(self._compiled)

    def _compiled(self, event: str, *_, **__):
        if "backend_compile" in event:
            self._compiles.inc()

    def answered(self, path: str, status: int):
        self._requests.labels(path, str(status)).inc()

    def first_token(self, job):
        """Of a `worker.Job`."""
        self._first.observe(job.first - job.queued)

    def watch(self, worker):
        """Shows the queue, slots, tokens and pieces read of a worker's engine."""
        engine, own = worker.engine, dict(registry=self._registry)
        for name, words, value in (
            ("kosmos_queue", "Requests that wait for a slot", lambda: len(engine.waiting)),
            ("kosmos_active", "Requests that are there", lambda: worker.count),
            ("kosmos_tokens", "Tokens written since the start", lambda: engine.written),
            ("kosmos_prefix_hits", "Pieces of prompts that were not read again", lambda: engine.reader.hits),
            ("kosmos_prefix_misses", "Pieces of prompts that were read", lambda: engine.reader.misses),
        ):
            Gauge(name, words, **own).set_function(value)
        slots = Gauge("kosmos_slots_taken", "Slots that are taken", ["length", "branches"], **own)
        for length, branches in engine.pools:
            taken = lambda key=(length, branches): engine.taken(key)  # noqa: E731
            slots.labels(str(length), str(branches)).set_function(taken)

    def text(self) -> str:
        return generate_latest(self._registry).decode()
