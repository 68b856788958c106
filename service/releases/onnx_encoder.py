"""The encoder of a release, run by ONNX Runtime, and the check of the files that its graph refers to.

A tensor may state that its data is in another file. Older ONNX Runtimes (1.20 among them) open any path that is written
there, such as `../../secret`, and every version knows a location that means the memory of the process. The service has
no `onnx` package, so the check walks the few message types of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
(2026) that lead to a tensor, and rejects whatever it does not understand.

Knows nothing of HTTP; `segue evaluate` uses the encoder too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from segue.arrays import Float32
from segue.errors import BadRelease
from segue.release import ITEM_EMBEDDINGS
from segue.window import Windows
from service.threads import interrupt_of_this_thread

# Message type -> field number -> message type of that field. tests/test_onnx_references.py holds it against onnx.proto.
LEADS_TO: Final[dict[str, dict[int, str]]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
    "StringStringEntryProto": {},
}
_KEY, _VALUE = 1, 2
_DEEPEST: Final = 64
_FIXED: Final = {1: 8, 5: 4}  # bytes by wire type
_VARINT, _BYTES = 0, 2


def referred_files(content: bytes) -> set[str]:
    """The locations that tensors of a graph name. Raises ValueError for bytes that are no ONNX model."""
    return {location.decode() for location in _locations(memoryview(content), "ModelProto", 0)}


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[bytes]:
    if depth > _DEEPEST:
        raise ValueError("its graphs are nested too deeply")
    fields = list(_fields(message))
    if kind == "StringStringEntryProto":
        # Readers take the last of repeated fields; here, none of them may be foreign.
        if any(number == _KEY and bytes(value) == b"location" for number, value in fields):
            yield from (bytes(value) for number, value in fields if number == _VALUE)
        return
    for number, value in fields:
        if number in LEADS_TO[kind]:
            yield from _locations(value, LEADS_TO[kind][number], depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Field number and content of the fields that hold bytes; numbers are passed over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, at = _varint(message, at)
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:
            raise ValueError(f"a field has the unknown wire type {wire}")
        if at + size > len(message) or not 0 < number < 2**29:
            raise ValueError("a field is longer than the message that holds it")
        if wire == _BYTES:
            yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at == len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number does not end")


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
