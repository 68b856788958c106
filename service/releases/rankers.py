"""The ranker of a release: its encoder in ONNX Runtime with an index, its transition counts, or both."""

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from index.exact import ExactIndex
from index.tuning import open_index
from segue.arrays import Float32, Float64, Int
from segue.catalogue import Catalogue
from segue.errors import BadRelease
from segue.filters import Allowed
from segue.hybrid import Counts
from segue.ngram import Found
from segue.recommend import EncoderRanker, NearestTracks, QueryEncoder, Ranked, Ranker
from segue.release import ENCODER, Release
from segue.window import Windows
from service.threads import interrupt_of_this_thread

_INPUTS = {"tracks": "tensor(int64)", "skipped": "tensor(bool)"}
# The fused add-and-layer-norm kernel of ONNX Runtime is five times slower on a CPU than two separate kernels.
_SLOWER = ["SkipLayerNormFusion"]
_OUTPUTS = {"query": "tensor(float)"}


class OnnxEncoder:
    """Implements segue.recommend.QueryEncoder. Safe to call from several threads at once."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Load `encoder.onnx`. Each call uses `threads` threads. Raises BadRelease for an invalid file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only: users cannot act on warnings about the graph
        # Threads that spin while they wait for work would slow down other requests.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER
            )
        except Exception as error:  # the exceptions of ONNX Runtime have no common base class
            raise BadRelease(
                f"{path} is not an encoder that ONNX Runtime can run: {first_line(error)}; export it again"
            ) from error
        for kind, expected, found in (
            ("inputs", _INPUTS, self._session.get_inputs()),
            ("outputs", _OUTPUTS, self._session.get_outputs()),
        ):
            types = {value.name: value.type for value in found}
            if types != expected:
                raise BadRelease(f"{path} has the {kind} {types}, expected {expected}: export it again")

    def encode(self, windows: Windows) -> Float32:
        """Return the query vector of each window. `windows` has [batch, window] arrays. [batch, dimension] float32."""
        inputs = {"tracks": np.ascontiguousarray(windows.tracks), "skipped": np.ascontiguousarray(windows.skipped)}
        queries: Float32 = self._session.run(["query"], inputs, interrupt_of_this_thread(_run_options))[0]
        return queries


def _run_options() -> Any:
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4  # fatal only: the watchdog in service/threads.py logs interrupted calls
    return options


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its class."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


class StepTimer(Protocol):
    """Measures the duration of a ranking step: `encode`, `search` or `count`."""

    def __call__(self, step: str, /) -> AbstractContextManager[Any]:
        """Return a context manager that measures the duration of its block."""
        ...


def untimed(_: str, /) -> AbstractContextManager[Any]:
    """Measure nothing."""
    return contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class EmbeddingSearch:
    """The encoder of a release, its index, and exact search over the same embeddings."""

    encoder: QueryEncoder
    index: NearestTracks
    exact: NearestTracks


@dataclass(frozen=True, slots=True)
class _TimedEncoder:
    encoder: QueryEncoder
    timed: StepTimer

    def encode(self, windows: Windows) -> Float32:
        with self.timed("encode"):
            return self.encoder.encode(windows)


@dataclass(frozen=True, slots=True)
class _TimedIndex:
    index: NearestTracks
    timed: StepTimer

    def search(self, queries: Float32, k: int, allowed: Allowed | None = None) -> Ranked:
        with self.timed("search"):
            return self.index.search(queries, k, allowed)


@dataclass(frozen=True, slots=True)
class _TimedCounts:
    counts: Counts
    timed: StepTimer

    def lookup(self, windows: Windows, extra: Int) -> Found:
        with self.timed("count"):
            return self.counts.lookup(windows, extra)

    def neighbours(self, row: int) -> tuple[Int, Float64]:
        return self.counts.neighbours(row)


def open_embeddings(
    release: Release, *, device: str = "cpu", exact: bool = False, threads: int = 1, timed: StepTimer = untimed
) -> EmbeddingSearch | None:
    """Open the encoder and the index of a release; None if it has no encoder. Raises BadRelease.

    `device` of the index is `cpu` or `gpu`. `exact` uses exact search even if the release has an index. `threads` is
    the number of threads per encoder call.
    """
    if not release.has_encoder:
        return None
    exactly = ExactIndex(release.item_embeddings)
    encoder = _TimedEncoder(OnnxEncoder(release.path / ENCODER, threads), timed)
    index = _TimedIndex(exactly if exact else open_index(release, device), timed)
    return EmbeddingSearch(encoder, index, exactly)


def ranker_of(
    release: Release, embeddings: EmbeddingSearch | None, catalogue: Catalogue, timed: StepTimer = untimed
) -> Ranker:
    """Return the ranker of a release: its encoder, its counts, or both together."""
    by_encoder = None
    if embeddings is not None:
        by_encoder = EncoderRanker(embeddings.encoder, embeddings.index, embeddings.exact, release.item_embeddings)
    if not release.has_counts:
        assert by_encoder is not None, release.name
        return by_encoder
    mixed = release.mixed_with(by_encoder, catalogue)
    return replace(mixed, counts=_TimedCounts(mixed.counts, timed))
