"""Releases that were damaged on purpose: their manifests vouch for indexes and encoders that are meant to do harm."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faiss as faiss_module
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from index import faiss_cpu
from index import ivf as mapped_lists
from index.faiss_cpu import FaissIndex, Kind
from segue.release import Release
from tests.catalogues import catalogue_of
from tests.conftest import WINDOW, encoder_of, write_encoder_release
from tests.sealing import sealed

faiss: Any = faiss_module
TRACKS, DIMENSION = 10_000, 16  # enough tracks for every kind of index
Change = Callable[[Any], object]


def write_plain_release(path: Path) -> Release:
    """A release without an index, whose tracks point in all directions."""
    rng = np.random.default_rng(0)
    embeddings = np.zeros((TRACKS + 1, DIMENSION), dtype=np.float32)
    embeddings[1:] = rng.normal(size=(TRACKS, DIMENSION))
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-9)
    catalogue = catalogue_of([f"t{number:05}" for number in range(TRACKS)])
    return write_encoder_release(path, catalogue, embeddings, WINDOW)


class Hostile:
    """Makes copies of a plain release with any index or encoder in it."""

    def __init__(self, plain: Release) -> None:
        self._plain = plain
        self._built: dict[Kind, FaissIndex] = {}

    def _index(self, kind: Kind) -> FaissIndex:
        if kind not in self._built:
            self._built[kind] = faiss_cpu.build(self._plain.item_embeddings, kind)
        return self._built[kind]

    def with_index(
        self, path: Path, kind: Kind, change: Change | None = None, parameters: Mapping[str, int] | None = None
    ) -> None:
        """Write a release whose index is `change`d, and index.json says `parameters`; `change` may return bytes."""
        built = self._index(kind)
        index = faiss.clone_index(built.structure)
        changed = change(index) if change is not None else None
        content = changed if isinstance(changed, bytes) else written(index)
        facts = {
            "kind": kind,
            "device": "cpu",
            "parameters": {**built.parameters.model_dump(), **(parameters or {})},
            "recall_target": 0.5,
            "recall": 0.9,
            "recall_k": 20,
            "queries": 1,
            "search_ms": 1,
            "exact_ms": 1,
            "build_s": 1,
            "seed": 0,
            "tracks": TRACKS,
            "dimension": DIMENSION,
        }
        shutil.copytree(self._plain.path, path)
        (path / "index.faiss").write_bytes(content)
        (path / "index.json").write_text(json.dumps(facts))
        sealed(path)

    def with_encoder(self, path: Path, content: bytes) -> None:
        """Write a release with another encoder."""
        shutil.copytree(self._plain.path, path)
        (path / "encoder.onnx").write_bytes(content)
        sealed(path)


# --- indexes ---


def written(index: Any) -> bytes:
    """The content of index.faiss."""
    if isinstance(index, faiss.IndexIVFPQFastScan) and index.nlist == index.invlists.nlist:
        return mapped_lists.to_bytes(index)
    return bytes(faiss.serialize_index(index).data)


def values(vector: Any) -> Any:
    """A C++ vector as an array that shares its memory."""
    return faiss.rev_swig_ptr(vector.data(), vector.size())


def put(where: str, value: object) -> Change:
    """Set a field, `hnsw.entry_point`; or fill a vector with a value."""

    def change(index: Any) -> None:
        *path, last = where.split(".")
        for name in path:
            index = getattr(index, name)
        if hasattr(getattr(index, last), "resize"):
            values(getattr(index, last)).fill(value)
        else:
            setattr(index, last, value)

    return change


def put_at(where: str, at: int, value: int) -> Change:
    """Set one value of a vector."""

    def change(index: Any) -> None:
        *path, last = where.split(".")
        for name in path:
            index = getattr(index, name)
        values(getattr(index, last))[at] = value

    return change


def resized(where: str, size: int) -> Change:
    """Make a vector longer or shorter than the index says."""

    def change(index: Any) -> None:
        for name in where.split("."):
            index = getattr(index, name)
        index.resize(size)

    return change


def ids(value: int) -> Change:
    """Have a list hold a position again and again."""

    def change(index: Any) -> None:
        size = index.invlists.list_size(0)
        faiss.rev_swig_ptr(index.invlists.get_ids(0), size)[:] = value

    return change


def centroids(more: int = 0, dimension: int = DIMENSION) -> Change:
    """Other centroids than lists, or such of another space."""

    def change(index: Any) -> None:
        count = max(0, index.nlist + more)
        index.quantizer = _kept(faiss.IndexFlatIP(dimension), count)

    return change


def graph_of_centroids(damage: Change) -> Change:
    """Centroids found by a graph, as those of large catalogues are, and the graph damaged."""

    def change(index: Any) -> None:
        graph = _kept(faiss.IndexHNSWFlat(DIMENSION, 8, faiss.METRIC_INNER_PRODUCT), index.nlist)
        damage(graph)
        index.quantizer = graph

    return change


def storage(dimension: int, count: int) -> Change:
    """A graph over other vectors."""

    def change(index: Any) -> None:
        index.storage = _kept(faiss.IndexFlatIP(dimension), count)

    return change


def of_bytes(change: Callable[[bytes], bytes]) -> Change:
    """The file itself, changed."""
    return lambda index: change(written(index))


def _kept(index: Any, count: int) -> Any:
    index.add(np.random.default_rng(1).normal(size=(count, index.d)).astype(np.float32))
    index.this.disown()  # the index that takes it frees it
    return index


# --- encoders ---


def encoder(*nodes: Any, **constants: Any) -> bytes:
    """A graph of the right inputs and outputs, whose last node must make `query`."""
    graph = helper.make_graph(
        nodes,
        "hostile",
        [
            helper.make_tensor_value_info("tracks", TensorProto.INT64, ["batch", WINDOW]),
            helper.make_tensor_value_info("skipped", TensorProto.BOOL, ["batch", WINDOW]),
        ],
        [helper.make_tensor_value_info("query", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content: bytes = model.SerializeToString()
    onnx.checker.check_model(content)
    return content


def _zeros() -> list[Any]:
    """Nodes that make `zeros` [batch, DIMENSION] of both inputs."""
    return [
        helper.make_node("Cast", ["tracks"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["skipped"], ["flags"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["numbers", "flags"], ["both"]),
        helper.make_node("Mul", ["both", "zero"], ["nothing"]),
        helper.make_node("MatMul", ["nothing", "wide"], ["zeros"]),
    ]


_ZEROS: dict[str, Any] = {"zero": np.float32(0), "wide": np.ones((WINDOW, DIMENSION), dtype=np.float32)}


def endless_encoder() -> bytes:
    """It loops for ever."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["carried"], ["carried_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_on", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["turns", "yes", "zeros"], ["query"], body=body)
    return encoder(*_zeros(), loop, turns=np.int64(2**62), yes=np.bool_(True), **_ZEROS)


def greedy_encoder(floats: int) -> bytes:
    """It asks for the memory of so many floats."""
    return encoder(
        *_zeros(),
        helper.make_node("ConstantOfShape", ["many"], ["all"]),
        helper.make_node("ReduceMax", ["all"], ["most"], keepdims=0),
        helper.make_node("Add", ["zeros", "most"], ["query"]),
        many=np.array([floats], dtype=np.int64),
        **_ZEROS,
    )


def encoder_of_small_batches(most: int) -> bytes:
    """It fails for more than so many windows at once: a first look of one or two would not tell."""
    return encoder(
        *_zeros(),
        helper.make_node("Shape", ["zeros"], ["shape"], end=1),
        helper.make_node("Gather", ["table", "shape"], ["found"]),
        helper.make_node("Add", ["zeros", "found"], ["query"]),
        table=np.zeros((most + 1, 1), dtype=np.float32),
        **_ZEROS,
    )


def encoder_of_no_number(row: int) -> bytes:
    """It answers what is no number for windows of tracks from a row on."""
    return encoder(
        *_zeros(),
        helper.make_node("ReduceMax", ["numbers"], ["latest"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["bound", "latest"], ["room"]),
        helper.make_node("Sqrt", ["room"], ["root"]),
        helper.make_node("Add", ["zeros", "root"], ["query"]),
        bound=np.float32(row),
        **_ZEROS,
    )


def encoder_that_hangs(embeddings: Any, row: int) -> bytes:
    """The sum of the window's embeddings, as of the tiny release; it loops for ever if the window holds the row."""
    model = onnx.load_from_string(encoder_of(embeddings))
    graph = model.graph
    graph.node[-1].output[0] = "sum"
    query = helper.make_tensor_value_info("query_of_branch", TensorProto.FLOAT, None)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["carried"], ["carried_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_on", TensorProto.FLOAT, None),
        ],
    )
    endless = helper.make_graph(
        [helper.make_node("Loop", ["turns", "yes", "sum"], ["query_of_branch"], body=body)], "endless", [], [query]
    )
    plain = helper.make_graph([helper.make_node("Identity", ["sum"], ["query_of_branch"])], "plain", [], [query])
    graph.node.extend(
        [
            helper.make_node("Equal", ["tracks", "row"], ["is_row"]),
            helper.make_node("Cast", ["is_row"], ["is_row_number"], to=TensorProto.INT64),
            helper.make_node("ReduceMax", ["is_row_number"], ["any_number"], keepdims=0),
            helper.make_node("Cast", ["any_number"], ["any"], to=TensorProto.BOOL),
            helper.make_node("If", ["any"], ["query"], then_branch=endless, else_branch=plain),
        ]
    )
    constants = {"row": np.int64(row), "turns": np.int64(2**62), "yes": np.bool_(True)}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def write_hanging_release(tiny: Release, path: Path, row: int) -> None:
    """A copy of the tiny release whose encoder hangs on the track of a row."""
    shutil.copytree(tiny.path, path)
    (path / "encoder.onnx").write_bytes(encoder_that_hangs(np.asarray(tiny.item_embeddings), row))
    sealed(path)
