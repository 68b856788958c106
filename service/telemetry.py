"""Structured JSON logs and Prometheus metrics of the service."""

import contextlib
import functools
import hashlib
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

# If this variable is set, prometheus_client keeps its values in files of that folder and sums over workers.
MULTIPROCESS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"
SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


# The request id, as returned to the client and as logged.
request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
_SESSION_IN_PATH: Final = re.compile(r"(?:(?<=/sessions/)|(?<=/listeners/))[^/]+")


def configure_logging(level: str, log_hash_key: str) -> None:
    """Write the log lines of structlog and of the standard library (uvicorn) to stderr as JSON.

    Session ids are hashed with `log_hash_key`: lines of one session can be grouped, but the session is not identified.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        _add_request_id,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _hash_session_ids(log_hash_key),
    ]
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(sort_keys=True)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [output]
    logging.getLogger("faiss").setLevel(logging.WARNING)  # at INFO it logs the CPU instructions it was built for
    root.setLevel(max(number, logging.INFO))  # debug lines of libraries are noise


def _add_request_id(_: Any, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if name := request_id.get():
        line["request_id"] = name
    return line


def _hash_session_ids(log_hash_key: str) -> structlog.typing.Processor:
    """A processor that replaces the session ids in `session_id`, and these and listener ids in `path`, by hashes."""

    def hashed(session_id: str) -> str:
        return hashlib.blake2s(
            session_id.encode(errors="replace"), key=log_hash_key.encode()[:32], digest_size=6
        ).hexdigest()

    def hide(_: Any, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if "session_id" in line:
            line["session_id"] = hashed(str(line["session_id"]))
        if "path" in line:
            line["path"] = _SESSION_IN_PATH.sub(lambda found: hashed(found[0]), str(line["path"]))
        return line

    return hide


class Telemetry:
    """The metrics of one app. Label values are route templates and fixed words, never text from a client."""

    def __init__(self, span: Callable[[str], AbstractContextManager[Any]] | None = None) -> None:
        """`span` returns a context manager that traces the named step."""
        self._span = span
        # The series of a metric for some label values. Without the cache, finding it takes longer than counting.
        self.series = functools.cache(lambda metric, *labels: metric.labels(*labels))
        # Identifies one start of the service, all workers included: counters restart from zero with it.
        shared = os.environ.get(MULTIPROCESS_DIR)
        self.instance = Path(shared).name if shared is not None else f"alone-{secrets.token_hex(4)}"
        self.registry = CollectorRegistry()
        self.requests = self._counter("http_requests", "HTTP responses", "method", "route", "status")
        self.request_seconds = self._histogram(
            "http_request_seconds", "Seconds from request to response", "method", "route"
        )
        self.shed = self._counter(
            "shed_requests", "Requests and connections rejected because the service was overloaded"
        )
        self.events = self._counter("events", "Events received, including duplicates", "type")
        self.sessions = self._counter("sessions", "Sessions started")
        self.duplicates = self._counter("duplicate_events", "Events ignored because their event_id was already known")
        self.unknown_tracks = self._counter(
            "unknown_tracks", "Events with a track that is not in the release's catalogue"
        )
        self.recommendations = self._counter("recommendations", "Recommendation lists returned", "release", "source")
        self.fallbacks = self._counter(
            "fallbacks", "Popularity lists returned because the session store or the model failed", "component"
        )
        self.release_swaps = self._counter("release_swaps", "Releases loaded or rejected", "result")
        # A series that exists from the start, as 0, is a line of a dashboard, and its first count is a rise.
        for component in ("store", "model"):
            self.fallbacks.labels(component)
        for result in ("loaded", "rejected"):
            self.release_swaps.labels(result)
        self.release_in_use = Gauge(
            "segue_release_in_use",
            "1 for each live release, 0 for a replaced one",
            ["release"],
            registry=self.registry,
            multiprocess_mode="mostrecent",  # the value of a dead worker must not win
        )
        self.attributed_plays = self._counter(
            "attributed_plays",
            "Plays attributed to the release that recommended the track, in sampled sessions",
            "release",
        )
        self.attributed_skips = self._counter(
            "attributed_skips",
            "Skips attributed to the release that recommended the track, in sampled sessions",
            "release",
        )
        self.ranking_seconds = self._histogram("ranking_seconds", "Seconds per ranking step", "step")
        self.ranking_timeouts = self._counter(
            "ranking_timeouts", "Encoder, index and search calls that exceeded their timeout"
        )
        self.ranking_threads_stuck = Gauge(
            "segue_ranking_threads_stuck",
            "Abandoned threads whose call has not returned",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.batch_size = Histogram(
            "segue_batch_size",
            "Requests per batch",
            ["stage"],
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        self.redis_seconds = self._histogram("redis_seconds", "Seconds per round trip to Redis", "operation")
        self.redis_retries = self._counter("redis_retries", "Commands retried because the Redis connection was lost")
        self.redis_circuit_open = Gauge(
            "segue_redis_circuit_open",
            "Workers whose circuit breaker for Redis is open",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.logged_plays = self._counter("event_log_written_plays", "Plays written to the event log's files")
        self.log_drops = self._counter(
            "event_log_dropped_plays", "Plays lost from the event log because its Redis stream was full"
        )
        self.logged_lists = self._counter("list_log_written_lists", "Served lists written to the event log's files")
        self.list_drops = self._counter(
            "list_log_dropped_lists", "Served lists lost because a queue was full or Redis was unavailable"
        )
        self.log_failures = self._counter("event_log_failures", "Failed flushes of the event log")
        self.log_lag = Gauge(
            "segue_event_log_lag_seconds",
            "Age of the oldest event not yet in the event log's files, at the last flush",
            registry=self.registry,
            multiprocess_mode="livemax",
        )

    def time_redis(self, operation: str) -> AbstractContextManager[Any]:
        """A context manager that measures one round trip to Redis."""
        return self._measured(self.series(self.redis_seconds, operation), f"redis {operation}")

    def time_ranking(self, step: str, /) -> AbstractContextManager[Any]:
        """A context manager that measures one step of a recommendation: `encode` or `search`."""
        return self._measured(self.series(self.ranking_seconds, step), step)

    def _measured(self, seconds: Histogram, step: str) -> AbstractContextManager[Any]:
        if self._span is None:
            return seconds.time()
        both = ExitStack()
        both.enter_context(self._span(step))
        both.enter_context(seconds.time())
        return both

    def exposition(self) -> bytes:
        """The metrics of all workers in Prometheus' text format."""
        return generate_latest(self._combined_registry())

    def families(self) -> list[Metric]:
        """The metrics of all workers as objects."""
        return list(self._combined_registry().collect())

    def _combined_registry(self) -> CollectorRegistry:
        if MULTIPROCESS_DIR not in os.environ:
            return self.registry
        _drop_dead_workers(Path(os.environ[MULTIPROCESS_DIR]))
        combined = CollectorRegistry()
        MultiProcessCollector(combined)  # type: ignore[no-untyped-call]
        return combined

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"segue_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"segue_{name}", text, labels, registry=self.registry, buckets=SECONDS)


def _drop_dead_workers(folder: Path) -> None:
    """Delete the gauges of workers that have exited, because they are no longer true. Counters stay."""
    for file in folder.glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            with contextlib.suppress(FileNotFoundError):  # another worker deleted it at the same time
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
