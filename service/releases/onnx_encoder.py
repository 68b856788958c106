"""The encoder of a release, run by ONNX Runtime. Knows nothing of HTTP; `segue evaluate` uses it too."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from segue.arrays import Float32
from segue.errors import BadRelease
from segue.release import ITEM_EMBEDDINGS
from segue.window import Windows
from service.releases.onnx_references import referred_files
from service.threads import interrupt_of_this_thread

_INPUTS = {"tracks": "tensor(int64)", "skipped": "tensor(bool)"}
# ONNX Runtime's fused sum and layer norm takes five times as long on a CPU as the two apart.
_SLOWER = ["SkipLayerNormFusion"]
_OUTPUTS = {"query": "tensor(float)"}


class OnnxEncoder:
    """Implements segue.recommend.QueryEncoder. Safe to call from several threads at once."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Load `encoder.onnx`; `threads` work on one call. Raises BadRelease for a file that is no such encoder."""
        _check_external_data(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; warnings about the graph are the exporter's business
        # Spinning threads would take the other requests' core while they wait for work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER
            )
        except Exception as error:  # ONNX Runtime's errors share no class of their own
            raise BadRelease(f"{path} is not an encoder that ONNX Runtime can run: {_first_line(error)}") from error
        for kind, expected, found in (
            ("inputs", _INPUTS, self._session.get_inputs()),
            ("outputs", _OUTPUTS, self._session.get_outputs()),
        ):
            types = {value.name: value.type for value in found}
            if types != expected:
                raise BadRelease(f"{path} has the {kind} {types}, expected {expected}: export it again")

    def encode(self, windows: Windows) -> Float32:
        """Query vectors of windows [batch, window]. [batch, dimension] float32."""
        inputs = {"tracks": np.ascontiguousarray(windows.tracks), "skipped": np.ascontiguousarray(windows.skipped)}
        queries: Float32 = self._session.run(["query"], inputs, interrupt_of_this_thread(_run_options))[0]
        return queries


def _run_options() -> Any:
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4  # fatal: that a call was interrupted is logged by whoever did it
    return options


def _check_external_data(path: Path) -> None:
    """Raise BadRelease for a graph that takes data from anywhere but the embeddings beside it."""
    try:
        foreign = referred_files(path.read_bytes()) - {ITEM_EMBEDDINGS}
    except (ValueError, OSError) as error:
        raise BadRelease(f"{path} is not an encoder that ONNX Runtime can run: {error}") from error
    if foreign:
        raise BadRelease(
            f"{path} refers to {min(foreign)[:200]!r}, allowed is {ITEM_EMBEDDINGS} alone: export it again"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
