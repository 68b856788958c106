"""ONNX Runtime itself must reject a graph that takes tensor data from outside the release's folder.

Versions up to 1.26 open `folder/../../secret`, or crash on a sparse tensor. These tests guard the floor in
pyproject.toml: 1.24.1 to 1.26.0 fail them, 1.27.0 to 1.32.0 pass (2026).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnxruntime
from onnx import ModelProto, NodeProto, SparseTensorProto, TensorProto, helper

from segue.errors import BadRelease
from service.releases.rankers import OnnxEncoder

SECRET = np.arange(1, 5, dtype=np.float32)


def outside(location: str, name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(nodes: list[NodeProto], *, functions: list[Any] | None = None, **options: Any) -> ModelProto:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = helper.make_graph(nodes, "g", [], [output], **options)
    return helper.make_model(made, opset_imports=opsets, ir_version=8, functions=functions or [])


def initializer(location: str) -> ModelProto:
    return graph([helper.make_node("Identity", ["w"], ["y"])], initializer=[outside(location)])


def constant(location: str) -> ModelProto:
    return graph([helper.make_node("Constant", [], ["y"], value=outside(location))])


def subgraph(location: str) -> ModelProto:
    inner_output = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    node = helper.make_node("Identity", ["w"], ["z"])
    branch = helper.make_graph([node], "b", [], inner_output, [outside(location)])
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    choose = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    return graph([choose], initializer=[condition])


def function(location: str) -> ModelProto:
    inner = helper.make_node("Constant", [], ["f"], value=outside(location))
    body = helper.make_function("own", "Read", [], ["f"], [inner], [helper.make_opsetid("", 17)])
    return graph([helper.make_node("Read", [], ["y"], domain="own")], functions=[body])


def sparse(location: str) -> ModelProto:
    values = outside(location)
    tensor = SparseTensorProto(values=values, dims=[4])
    tensor.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [4], range(4)))
    return graph([helper.make_node("Identity", ["w"], ["y"])], sparse_initializer=[tensor])


def twice(location: str) -> ModelProto:
    """Named twice: readers that take the first and readers that take the last must both reject it."""
    tensor = outside("inside.bin")
    tensor.external_data.add(key="location", value=location)
    return graph([helper.make_node("Identity", ["w"], ["y"])], initializer=[tensor])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release's folder with an allowed file, beside a secret one, with links that lead out."""
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "inside.bin").write_bytes(np.zeros(4, dtype=np.float32).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "up").symlink_to(tmp_path)
    return folder


def read(model: ModelProto, folder: Path) -> Any:
    (folder / "encoder.onnx").write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(folder / "encoder.onnx", options, providers=["CPUExecutionProvider"])
    return session.run(None, {})[0]


PLACES: list[Callable[[str], ModelProto]] = [initializer, constant, subgraph, function, sparse, twice]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location", ["../secret.bin", "absolute", "link.bin", "up/secret.bin", "no/../../secret.bin", "*/_ORT_MEM_ADDR_/*"]
)
def test_data_outside_the_folder_is_not_read(place: Callable[[str], ModelProto], location: str, folder: Path) -> None:
    named = str(folder.parent / "secret.bin") if location == "absolute" else location
    with pytest.raises(Exception, match=r"(?s).+"):  # ONNX Runtime's errors share no class of their own
        read(place(named), folder)


def test_data_inside_the_folder_is_read(folder: Path) -> None:
    """The graphs above are valid but for their location."""
    assert read(initializer("inside.bin"), folder).tolist() == [0, 0, 0, 0]
    assert read(subgraph("inside.bin"), folder).tolist() == [0, 0, 0, 0]


def test_an_encoder_that_refers_outside_is_one_line(folder: Path) -> None:
    (folder / "encoder.onnx").write_bytes(initializer("../secret.bin").SerializeToString())
    with pytest.raises(BadRelease, match=r"encoder\.onnx is not an encoder that ONNX Runtime can run: .*") as found:
        OnnxEncoder(folder / "encoder.onnx")
    assert "\n" not in str(found.value)
