"""The files that a graph refers to are found wherever tensors may hide, and nonsense is no model."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper, onnx_ml_pb2

from service.releases.onnx_encoder import LEADS_TO, referred_files

FROZEN = Path(__file__).parent / "releases" / "v1" / "encoder.onnx"


def outside(location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(1, dtype=np.float32), "t")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def model(graph: GraphProto) -> ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_a_release_refers_to_its_embeddings_alone() -> None:
    assert referred_files(FROZEN.read_bytes()) == {"item_embeddings.npy"}


def test_the_table_is_that_of_onnx() -> None:
    """Every message type from which a tensor can be reached, and every field by which."""
    types = dict(onnx_ml_pb2.DESCRIPTOR.message_types_by_name)
    reach = {"StringStringEntryProto"}
    fields: dict[str, dict[int, str]] = {}
    while True:
        fields = {
            name: {
                f.number: f.message_type.name for f in kind.fields if f.message_type and f.message_type.name in reach
            }
            for name, kind in types.items()
        }
        # Metadata and such are entries too, and name no file: entries count where a tensor holds its location.
        for name in fields:
            fields[name] = {n: to for n, to in fields[name].items() if to != "StringStringEntryProto"}
        fields["TensorProto"] = {13: "StringStringEntryProto"}
        more = {name for name in fields if fields[name]} | reach
        if more == reach:
            break
        reach = more
    reached = {name: by for name, by in fields.items() if by}
    types_of_a_model = {"TypeProto", "ValueInfoProto"}
    assert {name: by for name, by in LEADS_TO.items() if by} == {
        name: {n: to for n, to in by.items() if to not in types_of_a_model} for name, by in reached.items()
    }


def test_tensors_are_found_wherever_they_hide() -> None:
    inner = helper.make_graph([], "inner", [], [], [outside("in a graph of a node")])
    sparse = helper.make_sparse_tensor(outside("sparse values"), outside("sparse indices"), [1])
    node = helper.make_node("If", ["a"], ["b"], then_branch=inner, value=outside("in a node"))
    node.attribute.append(helper.make_attribute("many", [outside("in a list")]))
    graph = helper.make_graph([node], "outer", [], [], [outside("an initializer")])
    graph.sparse_initializer.append(sparse)
    whole = model(graph)
    hidden = helper.make_node("Constant", [], ["c"], value=outside("in a function"))
    whole.functions.append(helper.make_function("d", "f", [], ["c"], [hidden], [helper.make_opsetid("", 17)]))
    whole.training_info.add().algorithm.CopyFrom(helper.make_graph([], "t", [], [], [outside("in training")]))
    assert referred_files(whole.SerializeToString()) == {
        "in a graph of a node", "sparse values", "sparse indices", "in a node", "in a list", "an initializer",
        "in a function", "in training",
    }  # fmt: skip


def test_a_location_that_is_said_twice_is_found_twice() -> None:
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    entry = field(1, b"length") + field(1, b"location") + field(2, b"../out") + field(2, b"item_embeddings.npy")
    content = field(7, field(5, field(13, entry)))
    assert referred_files(content) == {"../out", "item_embeddings.npy"}
    # Numbers may be written longer than they need be.
    overlong = bytes([7 << 3 | 2, 0x80 | len(content[2:]), 0x00]) + content[2:]
    assert referred_files(overlong) == referred_files(content)


@pytest.mark.parametrize(
    "content", [b"\xff", b"\x3a\x05\x00", b"\x3b\x3c", b"\xff" * 11, b"\x3f", b"\x02\x00", b"\x3a\x80"]
)
def test_nonsense_is_no_model(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|number"):
        referred_files(content)


def test_graphs_within_graphs_end_somewhere() -> None:
    content = b""
    for _ in range(40):
        for number in (6, 5, 1):  # a graph in an attribute of a node of a graph
            size = len(content)
            length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
            content = bytes([number << 3 | 2]) + length + content
    size = len(content)
    content = bytes([7 << 3 | 2, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + content
    with pytest.raises(ValueError, match="nested too deeply"):
        referred_files(content)
