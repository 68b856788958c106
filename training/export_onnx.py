"""Export a trained encoder to ONNX, and check on real windows that ONNX Runtime and torch agree.

The item embeddings are not written twice: the graph refers to the data of item_embeddings.npy beside it, which ONNX
Runtime maps into memory.
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
    """The item embeddings that a release stores. [num_rows, dimension] float32."""
    matrix: Float32 = encoder.item_embeddings.weight.detach().cpu().numpy().astype(np.float32)
    return np.ascontiguousarray(matrix)


def export_encoder(encoder: Encoder) -> bytes:
    """The content of encoder.onnx: inputs tracks int64 and skipped bool [batch, window], output query [batch, dim]."""
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
    """The largest difference between ONNX Runtime and torch on real windows.

    `folder` holds encoder.onnx and item_embeddings.npy. Raises BadRelease above LARGEST_DIFFERENCE.
    """
    session = onnxruntime.InferenceSession(str(folder / ENCODER), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"tracks": windows.tracks, "skipped": windows.skipped})
    with torch.no_grad():
        expected = encoder.cpu().eval().query(torch.from_numpy(windows.tracks), torch.from_numpy(windows.skipped))
    difference = float(np.abs(found - expected.numpy()).max()) if len(windows) else 0.0
    if not difference <= LARGEST_DIFFERENCE:  # NaN counts as a difference
        raise BadRelease(
            f"the exported encoder differs from the trained one by {difference:.2g}, at most {LARGEST_DIFFERENCE:g} "
            "is allowed: the training has diverged, or the installed onnx and torch do not fit each other"
        )
    return difference


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings about its own deprecations and about packages that are not needed."""
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
    """Replace the embeddings in the graph by a reference to item_embeddings.npy."""
    raw = matrix.tobytes()
    for tensor in model.graph.initializer:
        if list(tensor.dims) == list(matrix.shape) and tensor.raw_data == raw:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            facts = {"location": ITEM_EMBEDDINGS, "offset": header_bytes(matrix), "length": len(raw)}
            for key, value in facts.items():
                tensor.external_data.add(key=key, value=str(value))


def _forget_where_it_was_made(model: onnx.ModelProto) -> None:
    """Remove the exporter's metadata, which contains paths of the training machine."""
    for noted in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del noted.metadata_props[:]


def header_bytes(matrix: Float32) -> int:
    """The byte offset of the data in the .npy file of this matrix."""
    stream = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(matrix.dtype), "fortran_order": False, "shape": matrix.shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.tell()
