"""What operators see of the service: JSON log lines, one a fact, and Prometheus metrics."""

import contextlib
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

# prometheus_client keeps its numbers in files of this folder, if it is named, so that workers are added up.
MULTIPROCESS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"
SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


# What a client is told a request is called, and what log lines call it.
request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
_SESSION_IN_PATH: Final = re.compile(r"(?<=/sessions/)[^/]+")


def configure_logging(level: str, log_hash_key: str) -> None:
    """Send structlog's lines and those of the standard library (uvicorn) to stderr as JSON.

    Session ids are hashed with `log_hash_key`: lines about one session can be put together, and nobody can be named.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        _name_request,
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
    logging.getLogger("faiss").setLevel(logging.WARNING)  # which instructions it was built for
    root.setLevel(max(number, logging.INFO))  # debug lines of libraries say nothing of the service


def _name_request(_: Any, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if name := request_id.get():
        line["request_id"] = name
    return line


def _hash_session_ids(log_hash_key: str) -> structlog.typing.Processor:
    """A step that puts short hashes for the session ids in `session_id` and `path`."""

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
    """The metrics of one app. Labels hold route templates and fixed words, never what a client sent."""

    def __init__(self, span: Callable[[str], AbstractContextManager[Any]] | None = None) -> None:
        """`span` gives a context that traces the step of the given name."""
        self._span = span
        # Tells one start of a service, with all of its workers, from another: counters begin anew with it.
        shared = os.environ.get(MULTIPROCESS_DIR)
        self.instance = Path(shared).name if shared is not None else f"alone-{secrets.token_hex(4)}"
        self.registry = CollectorRegistry()
        self.requests = self._counter("http_requests", "Requests answered", "method", "route", "status")
        self.request_seconds = self._histogram("http_request_seconds", "Time to answer", "method", "route")
        self.shed = self._counter("shed_requests", "Requests and connections refused as the service was full")
        self.events = self._counter("events", "Events reported, by type, duplicates included", "type")
        self.sessions = self._counter("sessions", "Sessions that began")
        self.duplicates = self._counter("duplicate_events", "Events that had been reported before")
        self.unknown_tracks = self._counter("unknown_tracks", "Tracks reported that the release does not hold")
        self.recommendations = self._counter("recommendations", "Lists of tracks answered", "release", "source")
        self.fallbacks = self._counter(
            "fallbacks", "Lists that came from popularity as the store or the model had failed", "component"
        )
        self.release_swaps = self._counter("release_swaps", "Releases that were loaded or rejected", "result")
        self.release_in_use = Gauge(
            "segue_release_in_use",
            "1 for each release that is served",
            ["release"],
            registry=self.registry,
            multiprocess_mode="mostrecent",  # a worker that died cannot go on claiming its release
        )
        self.recommended_plays = self._counter(
            "attributed_plays",
            "Plays of tracks that the release had recommended, in sessions that are looked at",
            "release",
        )
        self.recommended_skips = self._counter("attributed_skips", "Those of them that were skipped", "release")
        self.ranking_seconds = self._histogram("ranking_seconds", "Time to encode and to search", "step")
        self.ranking_timeouts = self._counter(
            "ranking_timeouts", "Calls of encoder, index or search that did not return within the deadline"
        )
        self.ranking_threads_stuck = Gauge(
            "segue_ranking_threads_stuck",
            "Threads whose call could not be interrupted and has not returned",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.batch_size = Histogram(
            "segue_batch_size",
            "Requests whose work was done together",
            ["stage"],
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        self.redis_seconds = self._histogram("redis_seconds", "Time of one round trip to Redis", "operation")
        self.redis_repeats = self._counter("redis_retries", "Commands sent again, as a connection to Redis had ended")
        self.redis_circuit_open = Gauge(
            "segue_redis_circuit_open",
            "Workers that do not ask Redis for now, as it does not answer",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.logged_plays = self._counter("event_log_written_plays", "Plays written to the event log's files")
        self.log_drops = self._counter(
            "event_log_dropped_plays", "Plays that the event log lost, as its stream was full and nobody wrote files"
        )
        self.log_failures = self._counter("event_log_failures", "Turns of the event log's writer that failed")
        self.log_lag = Gauge(
            "segue_event_log_lag_seconds",
            "Age of the oldest event that was not in the event log's files at the last look",
            registry=self.registry,
            multiprocess_mode="livemax",
        )

    def time_redis(self, operation: str) -> AbstractContextManager[Any]:
        """A context that measures one round trip."""
        return self._measured(self.redis_seconds.labels(operation), f"redis {operation}")

    def time_ranking(self, step: str, /) -> AbstractContextManager[Any]:
        """A context that measures one step of a recommendation: `encode` or `search`."""
        return self._measured(self.ranking_seconds.labels(step), step)

    def _measured(self, seconds: Histogram, step: str) -> AbstractContextManager[Any]:
        if self._span is None:
            return seconds.time()
        both = ExitStack()
        both.enter_context(self._span(step))
        both.enter_context(seconds.time())
        return both

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format, of all workers."""
        return generate_latest(self._of_all_workers())

    def families(self) -> list[Metric]:
        """The same as numbers."""
        return list(self._of_all_workers().collect())

    def _of_all_workers(self) -> CollectorRegistry:
        if MULTIPROCESS_DIR not in os.environ:
            return self.registry
        _drop_dead_workers(Path(os.environ[MULTIPROCESS_DIR]))
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return together

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"segue_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"segue_{name}", text, labels, registry=self.registry, buckets=SECONDS)


def _drop_dead_workers(numbers: Path) -> None:
    """Take away the gauges of workers that have ended: what they were last at is so no more. Counters stay."""
    for file in numbers.glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            with contextlib.suppress(FileNotFoundError):  # another worker was asked at the same time
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
