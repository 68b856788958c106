"""Export a trained encoder to ONNX, and check on real session windows that ONNX Runtime and torch agree.

The ONNX file does not contain the item embeddings. The graph refers to the data of item_embeddings.npy in the same
folder as external data, and ONNX Runtime maps the file into memory.
"""

import copy
import io
import logging
import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime
import torch
from onnxscript.optimizer import optimize
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


_PREFIX: Final = "encoder."  # of the names of weights: the attribute of _Query
_ITEM_EMBEDDINGS: Final = f"{_PREFIX}item_embeddings.weight"
_MAX_GRAPHS: Final = 32
_graphs: dict[Hashable, bytes] = {}  # by architecture, see _graph


def item_embeddings(encoder: Encoder) -> Float32:
    """Return the item embeddings of `encoder` as a contiguous array on the CPU. [num_rows, dimension] float32."""
    matrix: Float32 = encoder.item_embeddings.weight.detach().cpu().numpy().astype(np.float32)
    return np.ascontiguousarray(matrix)


def export_encoder(encoder: Encoder) -> bytes:
    """Return the content of encoder.onnx.

    The inputs of the graph are `tracks` [batch, window] int64 and `skipped` [batch, window] bool. The output is `query`
    [batch, dimension] float32. The first export of an architecture takes some seconds; later ones reuse its graph.
    """
    encoder = encoder.cpu().eval()
    model = onnx.ModelProto.FromString(_graph(encoder))
    weights = {_PREFIX + name: weight for name, weight in encoder.state_dict().items()}
    del weights[_ITEM_EMBEDDINGS]
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name].numpy(), tensor.name))
    model = optimize(model)
    _refer_to_item_embeddings(model, encoder.item_embeddings.weight.detach().numpy())  # without a copy
    _forget_where_it_was_made(model)
    return bytes(model.SerializeToString(deterministic=True))


def _graph(encoder: Encoder) -> bytes:
    """Return the ONNX model of an encoder before optimisation, with some weights of this architecture.

    It has two rows of item embeddings, so that neither time nor memory depends on the number of tracks.
    """
    architecture = encoder.architecture
    if architecture not in _graphs:
        if len(_graphs) == _MAX_GRAPHS:
            _graphs.clear()
        _graphs[architecture] = _traced(_with_two_rows(encoder))
    return _graphs[architecture]


def _with_two_rows(encoder: Encoder) -> Encoder:
    few = nn.Embedding(2, encoder.item_embeddings.embedding_dim)
    with torch.no_grad():
        few.weight.copy_(torch.tensor([[1e9], [2e9]]))  # equal to no other weight, which the optimiser would merge
    return copy.deepcopy(encoder, {id(encoder.item_embeddings): few})


def _traced(encoder: Encoder) -> bytes:
    window = encoder.options.window
    example = (torch.ones(2, window, dtype=torch.int64), torch.zeros(2, window, dtype=torch.bool))
    batch = {0: torch.export.Dim.DYNAMIC}
    with _quiet_exporter():
        program = torch.onnx.export(
            _Query(encoder),
            example,
            dynamo=True,
            dynamic_shapes={"tracks": batch, "skipped": batch},
            input_names=["tracks", "skipped"],
            output_names=["query"],
            opset_version=OPSET,
            optimize=False,  # that needs the weights
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return bytes(model.SerializeToString())


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
    """Replace the two rows of item embeddings in the graph by a reference to item_embeddings.npy. In place."""
    [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == _ITEM_EMBEDDINGS]
    tensor.ClearField("raw_data")
    tensor.dims[:] = matrix.shape
    tensor.data_location = onnx.TensorProto.EXTERNAL
    facts = {"location": ITEM_EMBEDDINGS, "offset": header_bytes(matrix), "length": matrix.nbytes}
    for key, value in facts.items():
        tensor.external_data.add(key=key, value=str(value))
    for index, value in enumerate(model.graph.value_info):
        if value.name == _ITEM_EMBEDDINGS:
            del model.graph.value_info[index]
            return


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
