"""Export a trained encoder to ONNX, and check on real session windows that ONNX Runtime and torch agree.

The ONNX file does not contain the item embeddings. The graph refers to the data of item_embeddings.npy in the same
folder as external data, and ONNX Runtime maps the file into memory.
"""

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from segue.arrays import Float32
from segue.errors import BadRelease
from segue.release import ENCODER, ITEM_EMBEDDINGS
from segue.window import Windows
from training.models.encoders.encoder import Encoder

LARGEST_DIFFERENCE: Final = 1e-4
OPSET: Final = 20


class _Query(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        return self.encoder.query(tracks, skipped)


def item_embeddings(encoder: Encoder) -> Float32:
    """Return the item embeddings of `encoder` as a contiguous array on the CPU. [num_rows, dimension] float32."""
    matrix: Float32 = encoder.item_embeddings.weight.detach().cpu().numpy().astype(np.float32)
    return np.ascontiguousarray(matrix)


def export_encoder(encoder: Encoder) -> bytes:
    """Return the content of encoder.onnx.

    The inputs of the graph are `tracks` [batch, window] int64 and `skipped` [batch, window] bool. The output is `query`
    [batch, dimension] float32.
    """
    encoder = encoder.cpu().eval()
    window = encoder.options.window
    example = (torch.ones(2, window, dtype=torch.int64), torch.zeros(2, window, dtype=torch.bool))
    batch = {0: torch.export.Dim.DYNAMIC}
    with _quiet_exporter(), tempfile.TemporaryDirectory() as folder:
        program = torch.onnx.export(
            _Query(encoder),
            example,
            dynamo=True,
            dynamic_shapes={"tracks": batch, "skipped": batch},
            input_names=["tracks", "skipped"],
            output_names=["query"],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        program.save(str(Path(folder) / ENCODER), external_data=False)
        model = onnx.load(str(Path(folder) / ENCODER))
    for place, name in ((model.graph.input, "batch"), (model.graph.output, "batch")):
        for value in place:
            value.type.tensor_type.shape.dim[0].dim_param = name
    _refer_to_item_embeddings(model, item_embeddings(encoder))
    _forget_where_it_was_made(model)
    return bytes(model.SerializeToString(deterministic=True))


def check_parity(folder: Path, encoder: Encoder, windows: Windows) -> float:
    """Return the largest difference between the queries of ONNX Runtime and torch on `windows`.

    The difference is relative to the largest absolute value of a query, if that is above 1: float32 has a relative
    precision, and untrained embeddings can be large. `folder` must contain encoder.onnx and item_embeddings.npy.

    Raises:
        BadRelease: The difference is larger than LARGEST_DIFFERENCE, or a query is not finite.

    """
    session = onnxruntime.InferenceSession(str(folder / ENCODER), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"tracks": windows.tracks, "skipped": windows.skipped})
    with torch.no_grad():
        expected = encoder.cpu().eval().query(torch.from_numpy(windows.tracks), torch.from_numpy(windows.skipped))
    queries = expected.numpy()
    if not len(windows):
        return 0.0
    difference = float(np.abs(found - queries).max() / np.maximum(np.abs(queries).max(), 1.0))
    if not difference <= LARGEST_DIFFERENCE:  # also true for NaN
        raise BadRelease(
            f"the exported encoder differs from the trained one by {difference:.2g}, at most {LARGEST_DIFFERENCE:g} "
            "is allowed: the training has diverged, or the installed onnx and torch do not fit each other"
        )
    return difference


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Return a context manager that silences the exporter's warnings about deprecations and optional packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _refer_to_item_embeddings(model: onnx.ModelProto, matrix: Float32) -> None:
    """Replace the item embeddings in the graph by a reference to item_embeddings.npy. Change `model` in place."""
    raw = matrix.tobytes()
    for tensor in model.graph.initializer:
        if list(tensor.dims) == list(matrix.shape) and tensor.raw_data == raw:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            facts = {"location": ITEM_EMBEDDINGS, "offset": header_bytes(matrix), "length": len(raw)}
            for key, value in facts.items():
                tensor.external_data.add(key=key, value=str(value))


def _forget_where_it_was_made(model: onnx.ModelProto) -> None:
    """Remove the exporter's metadata in place, because the metadata contains file paths of the training machine."""
    for noted in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del noted.metadata_props[:]


def header_bytes(matrix: Float32) -> int:
    """Return the size of the header of a .npy file with `matrix`, which is the byte offset of the data."""
    stream = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(matrix.dtype), "fortran_order": False, "shape": matrix.shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.tell()
