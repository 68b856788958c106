"""The session encoder of a release, run by ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from segue.arrays import Float32
from segue.errors import BadRelease
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
