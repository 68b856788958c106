"""Whatever is wrong with a release, it is refused in one line, and the one before it serves on.

Two kinds of damage. Accidents leave the manifest alone, so its hashes tell. Whoever means harm writes hashes that fit
(`sealed`), so that every file must be checked for what it says.
"""

import asyncio
import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

pytest.importorskip("faiss")
pytest.importorskip("onnx")

import faiss
import onnx

from index.tuning import index_release
from segue.errors import InputError
from segue.release import Release, ReleaseMetadata, open_release, write_release
from service.releases.loaded import Question
from service.releases.rankers import OnnxEncoder
from service.releases.registry import ReleaseRegistry
from service.settings import Settings
from service.telemetry import Telemetry
from service.threads import Threads
from tests.catalogues import catalogue_of
from tests.sealing import named, sealed

FROZEN = Path(__file__).parent / "releases" / "v1"
Damage = Callable[[Path], object]


@dataclass
class Serving:
    """A worker's releases, one of which serves, on a loop of its own."""

    folder: Path
    releases: ReleaseRegistry
    runner: asyncio.Runner

    def swap(self, name: str) -> None:
        self.runner.run(self.releases.swap(name))

    def answers(self) -> int:
        async def ask() -> int:
            return len((await self.releases.current.ranking(Question([], 20))).rows)

        return self.runner.run(ask())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The frozen release as it would be written today: with the catalogue's mapped files and a new index."""
    frozen = open_release(FROZEN)
    draft = ReleaseMetadata(**{name: getattr(frozen.manifest, name) for name in ReleaseMetadata.model_fields})
    arrays = {name: frozen.array(name) for name in frozen.manifest.files if name.endswith(".npy")}
    arrays["map.npy"] = np.linspace(-1, 1, 2 * frozen.catalogue.num_rows, dtype=np.float32).reshape(-1, 2)
    path = tmp_path_factory.mktemp("whole") / "whole"
    release = write_release(path, draft, frozen.catalogue, arrays, (FROZEN / "encoder.onnx").read_bytes())
    queries = OnnxEncoder(path / "encoder.onnx").encode(release.sample_windows)
    return index_release(release, queries, "ivf", recall_target=0.5)[0]


@pytest.fixture(scope="module")
def serving(whole: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(whole.path, folder / "good")
    settings = Settings(release=folder / "good", releases_dir=folder)
    with asyncio.Runner() as runner:
        yield Serving(folder, ReleaseRegistry(settings, Threads(1), Telemetry()), runner)


def refuse(serving: Serving, whole: Release, damage: Damage) -> str:
    """The line with which a damaged copy is refused, once it is seen that the old one serves on."""
    path = serving.folder / "bad"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(whole.path, path)
    damage(path)
    before = serving.releases.current
    with pytest.raises(InputError) as caught:
        serving.swap("bad")
    assert caught.value.http_status in (404, 422)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert serving.releases.current is before
    assert not (serving.folder / "current").exists()
    assert serving.answers() == 20
    return str(caught.value)


def test_the_release_is_good_before_it_is_damaged(whole: Release, serving: Serving) -> None:
    """And by the way: whatever the tests below leave behind, a good one is still taken."""
    shutil.copytree(whole.path, serving.folder / "fresh")
    serving.swap("fresh")
    assert serving.releases.current.live.folder == "fresh"
    assert serving.answers() == 20
    (serving.folder / "current").unlink()


# --- by accident ---

FILES = [
    *("attribute_codes.npy", "attributes.arrow"),
    *("catalogue.parquet", "encoder.onnx", "index.faiss", "index.json", "item_embeddings.npy", "map.npy"),
    "plays.npy",
    *("rows_by_id.npy", "rows_by_plays.npy", "sample_skipped.npy", "sample_tracks.npy", "search.arrow"),
    *("track_id_ends.npy", "track_ids.bin", "track_json.bin", "track_json_ends.npy"),
]


def flipped(name: str, at: float, path: Path) -> None:
    content = bytearray((path / name).read_bytes())
    content[min(int(at * len(content)), len(content) - 1)] ^= 4
    (path / name).write_bytes(content)


def overwritten(name: str, content: bytes, path: Path) -> None:
    (path / name).write_bytes(content)


def without(name: str, path: Path) -> None:
    (path / name).unlink()
    sealed(path)


def swapped(one: Path, other: Path) -> None:
    spare = one.with_name("spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


def test_every_file_is_damaged_below(whole: Release) -> None:
    assert sorted(whole.manifest.files) == FILES


@pytest.mark.parametrize("name", FILES)
def test_accidents_to_a_file(serving: Serving, whole: Release, name: str) -> None:
    for at in (0, 0.5, 1):
        assert "sha256 differs" in refuse(serving, whole, partial(flipped, name, at))
    content = (whole.path / name).read_bytes()
    for other in (b"", content[: len(content) // 2], content + b"\0"):
        assert "the manifest says" in refuse(serving, whole, partial(overwritten, name, other))
    assert "is missing" in refuse(serving, whole, lambda path: (path / name).unlink())


@pytest.mark.parametrize(
    ("one", "other"),
    [("encoder.onnx", "item_embeddings.npy"), ("rows_by_id.npy", "rows_by_plays.npy"), ("index.json", "index.faiss")],
)
def test_files_that_have_changed_places(serving: Serving, whole: Release, one: str, other: str) -> None:
    refuse(serving, whole, lambda path: swapped(path / one, path / other))


@pytest.mark.parametrize("name", ["encoder.onnx", "item_embeddings.npy", "track_json.bin"])
def test_a_file_of_another_release(serving: Serving, whole: Release, tiny_release: Release, name: str) -> None:
    refuse(serving, whole, lambda path: shutil.copy(tiny_release.path / name, path / name))


def test_a_bit_of_the_manifest(serving: Serving, whole: Release) -> None:
    """It has no hash of its own: a flip is refused, or changes nothing that a release is served by."""
    manifest = whole.manifest
    text = (whole.path / "manifest.json").read_bytes()
    beside = ("options", "loss", "dataset", "source_commit", "created", "evaluation")
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(text), 150).tolist():
        content = bytearray(text)
        content[at] ^= 1 << int(rng.integers(0, 8))
        path = serving.folder / "bad"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole.path, path)
        (path / "manifest.json").write_bytes(content)
        try:
            found = open_release(path).manifest
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 (not being refused is right as well)
        else:
            assert found.model_dump(exclude=set(beside)) == manifest.model_dump(exclude=set(beside))


# --- by intent: the manifest ---


def saying(**change: Any) -> Damage:
    def damage(path: Path) -> None:
        content = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(content | change))

    return damage


def with_text(change: Callable[[str], str | bytes]) -> Damage:
    def damage(path: Path) -> None:
        content = change((path / "manifest.json").read_text())
        (path / "manifest.json").write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def listing(name: str, content: bytes) -> Damage:
    """A file of this name is listed, and is there, with the content that is listed."""

    def damage(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        facts = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        manifest["files"][name] = facts
        (path / name).write_bytes(content)
        (path / "manifest.json").write_text(json.dumps(manifest | {"name": named(manifest, manifest["files"])}))

    return damage


def linked(name: str) -> Damage:
    def damage(path: Path) -> None:
        outside = path.parent / f".outside-{name}"
        shutil.copy(path / name, outside)
        (path / name).unlink()
        (path / name).symlink_to(outside)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (saying(format_version=2), "format version 2, this Segue reads 1"),
        (saying(format_version=0), "format version 0"),
        (saying(format_version="1"), "format version '1'"),
        (saying(format_version=True), "format version True"),
        (saying(format_version=1.0), "format version 1.0"),
        (saying(format_version=None), "format version None"),
        (saying(surprise=1), "surprise"),
        (saying(tracks=999), "1000 tracks, the manifest 999"),
        (saying(tracks="1000"), "tracks"),
        (saying(tracks=-1), "tracks"),
        (saying(tracks=10**30), "10000000000"),
        (saying(dimension=15), "the manifest asks for float32 (1001, 15)"),
        (saying(dimension=None), "the manifest asks for float32 (1001, None)"),
        (saying(window={"length": 21}), "the encoder fails on a window of 21"),
        (saying(window={"length": 10**12}), "window.length"),
        (saying(window={"length": 0}), "window.length"),
        (saying(window={}), "window.length"),
        (saying(metric="cosine"), "metric"),
        (saying(name="sasrec-0000000000"), "calls the release sasrec-0000000000, by its content it is"),
        (saying(name="evil\nname"), "name"),
        (saying(model="wrmf"), "by its content it is wrmf-"),
        (saying(created="yesterday"), "created"),
        (saying(files={}), "which its manifest does not list"),
        (saying(files=[]), "files"),
        (saying(files={"encoder.onnx": {"sha256": "0" * 64}}), "files.encoder.onnx.bytes"),
        (saying(files={"encoder.onnx": {"sha256": "0" * 63, "bytes": 1}}), "files.encoder.onnx.sha256"),
        (saying(files={"encoder.onnx": {"sha256": "0" * 64, "bytes": -1}}), "files.encoder.onnx.bytes"),
        (listing("../outside", b"x"), "'../outside', which is no plain file name"),
        (listing("/tmp/segue-outside", b"x"), "'/tmp/segue-outside', which is no plain file name"),
        (saying(files={"..": {"sha256": "0" * 64, "bytes": 0}}), "no plain file name"),
        (saying(files={"": {"sha256": "0" * 64, "bytes": 0}}), "no plain file name"),
        (saying(files={"a\0b": {"sha256": "0" * 64, "bytes": 0}}), "no plain file name"),
        (listing(".hidden", b"x"), "no plain file name"),
        (listing("two\nlines", b"x"), "no plain file name"),
        (listing("x" * 200, b"x"), "no plain file name"),
        (linked("encoder.onnx"), "no plain file"),
        (linked("item_embeddings.npy"), "no plain file"),
        (linked("manifest.json"), "it is a link"),
        (lambda path: (path / "more").write_text("x"), "holds 'more', which its manifest does not list"),
        (lambda path: (path / "link").symlink_to("/etc/passwd"), "holds 'link', which its manifest does not list"),
        (lambda path: (path / "folder").mkdir(), "holds 'folder', which its manifest does not list"),
        (with_text(lambda text: ""), "is damaged"),
        (with_text(lambda text: text[:-20]), "is damaged"),
        (with_text(lambda text: "[]"), "format version None"),
        (with_text(lambda text: text.replace('"tracks"', '"tracks": 7, "tracks"', 1)), "holds 'tracks' twice"),
        (with_text(lambda text: text.replace('"bytes"', '"bytes": 7, "bytes"', 1)), "holds 'bytes' twice"),
        (with_text(lambda text: text.replace("0.0225", "NaN", 1)), "NaN is no number of JSON"),
        (with_text(lambda text: "[" * 100_000), "nested too deeply"),
        (with_text(lambda text: text + " " * 2**24), "at most 16,777,216 are read"),
        (with_text(lambda text: text.encode() + b"\xff"), "is damaged"),
        (with_text(lambda text: text.replace("1000", "1" * 5000, 1)), "is damaged"),
    ],
)  # fmt: skip
def test_a_manifest_that_lies(serving: Serving, whole: Release, damage: Damage, message: str) -> None:
    assert message in refuse(serving, whole, damage)


# --- by intent: the arrays ---


def holding(name: str, change: Callable[[Any], Any]) -> Damage:
    """The array of a file, changed; the manifest vouches for it."""

    def damage(path: Path) -> None:
        content = change(np.load(path / name))
        np.save(path / name, content, allow_pickle=True)
        for index in path.glob("index.*"):  # which would be refused first
            index.unlink()
        sealed(path)

    return damage


def put(array: Any, at: Any, value: Any) -> Any:
    array[at] = value
    return array


def of_bytes(name: str, content: bytes | Callable[[bytes], bytes]) -> Damage:
    def damage(path: Path) -> None:
        (path / name).write_bytes(content if isinstance(content, bytes) else content((path / name).read_bytes()))
        sealed(path)

    return damage


def header(text: str, data: bytes = b"") -> bytes:
    """An .npy file with any header."""
    line = text.encode() + b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + data


def npy(shape: str, descr: str = "'<f4'", data: bytes = b"") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}", data)


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(3))
    return stream.getvalue()


NO_ARRAY = "item_embeddings.npy is not a NumPy array"
UNFIT = "the manifest asks for float32 (1001, 16)"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (holding("item_embeddings.npy", lambda m: m[:-1]), UNFIT),
        (holding("item_embeddings.npy", lambda m: m[:, :-1]), UNFIT),
        (holding("item_embeddings.npy", lambda m: m.reshape(-1)), UNFIT),
        (holding("item_embeddings.npy", lambda m: m.astype(np.float64)), UNFIT),
        (holding("item_embeddings.npy", lambda m: m.astype(">f4")), UNFIT),
        (holding("item_embeddings.npy", np.asfortranarray), UNFIT),
        (holding("item_embeddings.npy", lambda m: m.view([("a", np.float32)])[..., 0]), UNFIT),
        (holding("item_embeddings.npy", lambda m: put(m, (500, 3), np.nan)), "of row 500 is not finite"),
        (holding("item_embeddings.npy", lambda m: put(m, (1000, 3), np.inf)), "of row 1000 is not finite"),
        (holding("item_embeddings.npy", lambda m: put(m, (0, 0), np.nan)), "of row 0 is not finite"),
        (holding("item_embeddings.npy", lambda m: m.astype(object)), NO_ARRAY),
        (of_bytes("item_embeddings.npy", pickle.dumps([1, 2])), NO_ARRAY),
        (of_bytes("item_embeddings.npy", npz()), NO_ARRAY),
        (of_bytes("item_embeddings.npy", b""), NO_ARRAY),
        (of_bytes("item_embeddings.npy", b"\x93NUMPY\x09\x00"), NO_ARRAY),
        (of_bytes("item_embeddings.npy", npy("(1001, 16)")), NO_ARRAY),
        (of_bytes("item_embeddings.npy", npy("(10**12, 16)")), NO_ARRAY),
        (of_bytes("item_embeddings.npy", npy(f"({10**15}, 16)")), NO_ARRAY),
        (of_bytes("item_embeddings.npy", npy(f"({10**30}, {10**30})")), NO_ARRAY),
        (of_bytes("item_embeddings.npy", npy("(-1, 16)")), NO_ARRAY),
        (of_bytes("item_embeddings.npy", npy("(1001, 16)", "'O'", bytes(10_000))), NO_ARRAY),
        (of_bytes("item_embeddings.npy", npy("(1001, 16)", "'nonsense'", bytes(10_000))), NO_ARRAY),
        (of_bytes("item_embeddings.npy", npy("__import__('os').abort()")), NO_ARRAY),
        (of_bytes("item_embeddings.npy", header("(" * 9_000)), NO_ARRAY),
        (of_bytes("item_embeddings.npy", header("{" + "'a': 1," * 5_000)), NO_ARRAY),
        (holding("map.npy", lambda a: a[:-1]), "map.npy is float32 (1000, 2), the manifest asks for float32 (1001, 2)"),
        (holding("map.npy", lambda a: np.repeat(a, 2, axis=1)), "map.npy is float32 (1001, 4)"),
        (holding("map.npy", lambda a: a.astype(np.float64)), "map.npy is float64"),
        (holding("map.npy", np.asfortranarray), "map.npy is float32 (1001, 2)"),
        (holding("map.npy", lambda a: put(a, (500, 1), np.nan)), "map.npy holds what is no place"),
        (holding("map.npy", lambda a: put(a, (0, 0), -np.inf)), "map.npy holds what is no place"),
        (holding("map.npy", lambda a: put(a, (1000, 0), 1.5)), "map.npy holds what is no place"),
        (of_bytes("map.npy", npy("(1001, 2)")), "map.npy is not a NumPy array"),
        (of_bytes("map.npy", pickle.dumps([1, 2])), "map.npy is not a NumPy array"),
        (holding("rows_by_id.npy", lambda a: put(a, 7, 1001)), "does not name the rows 1 to 1000"),
        (holding("rows_by_id.npy", lambda a: put(a, 7, 0)), "does not name the rows 1 to 1000"),
        (holding("rows_by_id.npy", lambda a: a[:-1]), "track_id_ends.npy is int64 (1001,)"),
        (holding("rows_by_id.npy", lambda a: a.astype(np.int64)), "rows_by_id.npy is int64 (1000,), expected int32"),
        (holding("rows_by_id.npy", lambda a: a[::-1].copy()), "disagree on row 1"),
        (holding("rows_by_plays.npy", lambda a: put(a, 7, -5)), "does not name the rows 1 to 1000"),
        (holding("track_id_ends.npy", lambda a: put(a, 7, 10**15)), "track_ids.bin does not fit"),
        (holding("track_id_ends.npy", lambda a: put(a, 0, 3)), "track_ids.bin does not fit"),
        (holding("track_json_ends.npy", lambda a: a + 1), "track_json.bin does not fit"),
        (holding("track_json_ends.npy", lambda a: a.astype(np.uint64)), "track_json_ends.npy is uint64"),
        (holding("plays.npy", lambda a: put(a, 3, np.nan)), "plays.npy holds what is no number"),
        (holding("plays.npy", lambda a: a[:, None]), "plays.npy is float32 (1001, 1)"),
        (of_bytes("track_ids.bin", lambda content: b"\xff" * len(content)), "nothing of row"),
        (of_bytes("track_ids.bin", lambda content: content[:-1]), "does not fit"),
        (of_bytes("track_json.bin", lambda content: b"\xff" * len(content)), "nothing of row"),
        (of_bytes("track_json.bin", lambda content: b" " * len(content)), "nothing of row"),
        (of_bytes("search.arrow", b"nonsense"), "search.arrow is not an Arrow file"),
        (of_bytes("search.arrow", lambda content: content[: len(content) // 2]), "search.arrow is not an Arrow file"),
        (of_bytes("catalogue.parquet", b"nonsense"), "catalogue.parquet cannot be read as Parquet"),
        (of_bytes("catalogue.parquet", lambda content: content[:99] + content[-99:]), "cannot be read as Parquet"),
    ],
)
def test_arrays_that_lie(serving: Serving, whole: Release, damage: Damage, message: str) -> None:
    assert message in refuse(serving, whole, damage)


def search_of(frame: pl.DataFrame) -> Damage:
    def damage(path: Path) -> None:
        frame.write_ipc(path / "search.arrow", compression="uncompressed")
        sealed(path)

    return damage


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            pl.DataFrame({"row": [1], "text": ["a"]}, schema={"row": pl.Int32, "text": pl.String}),
            "does not name the rows",
        ),
        (
            pl.DataFrame({"row": [9999] * 1000}, schema={"row": pl.Int32}).with_columns(text=pl.lit("a")),
            "does not name",
        ),
        (pl.DataFrame({"row": [1] * 1000, "text": ["a"] * 1000}), "has other columns"),
        (pl.DataFrame({"text": ["a"] * 1000}), "has other columns"),
    ],
)
def test_a_search_that_finds_what_is_not_there(
    serving: Serving, whole: Release, frame: pl.DataFrame, message: str
) -> None:
    assert message in refuse(serving, whole, search_of(frame))


def test_a_catalogue_of_another_size(serving: Serving, whole: Release) -> None:
    def damage(path: Path) -> None:
        catalogue_of(["a", "b"]).write_parquet(path / "catalogue.parquet")
        sealed(path)

    assert "the catalogue has 2 tracks, the manifest 1000" in refuse(serving, whole, damage)


def test_an_older_release_whose_catalogue_is_damaged(serving: Serving, whole: Release) -> None:
    """One that has no mapped files is read from Parquet: names must be there, and only once."""
    for frame in (
        pl.DataFrame({"track": ["a"] * 1000}),
        pl.DataFrame({"track_id": ["a"] * 1000}),
        pl.DataFrame({"track_id": [[1]] * 1000}),
        pl.DataFrame({"track_id": [f"t{i}" for i in range(1000)], "plays": ["many"] * 1000}),
        pl.DataFrame({"row": range(7, 1007), "track_id": [f"t{i}" for i in range(1000)]}),
    ):

        def damage(path: Path, frame: pl.DataFrame = frame) -> None:
            for file in path.glob("*"):
                if file.name.startswith(("track_", "rows_", "plays", "search")):
                    file.unlink()
            frame.write_parquet(path / "catalogue.parquet")
            sealed(path)

        refuse(serving, whole, damage)


# --- by intent: the encoder ---


def encoding(change: Callable[[Any], object]) -> Damage:
    """The graph, changed; the manifest vouches for it."""

    def damage(path: Path) -> None:
        model = onnx.load(str(path / "encoder.onnx"), load_external_data=False)
        change(model)
        (path / "encoder.onnx").write_bytes(model.SerializeToString())
        sealed(path)

    return damage


def refer_to(location: str, **facts: int) -> Callable[[Any], None]:
    """Have the embeddings in the graph refer to another file."""

    def change(model: Any) -> None:
        changed = 0
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
                    changed += 1
                elif entry.key in facts:
                    entry.value = str(facts[entry.key])
        assert changed

    return change


def rename_input(model: Any) -> None:
    for node in model.graph.node:
        node.input[:] = ["songs" if name == "tracks" else name for name in node.input]
    for value in model.graph.input:
        value.name = "songs" if value.name == "tracks" else value.name


def outside(damage: Damage) -> Damage:
    """With a file beside the release that could be read in place of its own."""

    def do(path: Path) -> None:
        shutil.copy(path / "item_embeddings.npy", path.parent / "outside.npy")
        damage(path)

    return do


NO_ENCODER = "is not an encoder that ONNX Runtime can run"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (outside(encoding(refer_to("../outside.npy"))), NO_ENCODER),
        (outside(encoding(refer_to("./../outside.npy"))), NO_ENCODER),
        (encoding(refer_to("/etc/passwd")), NO_ENCODER),
        (encoding(refer_to("nothing.npy")), NO_ENCODER),
        (encoding(refer_to("")), NO_ENCODER),
        (encoding(refer_to("*/_ORT_MEM_ADDR_/*")), NO_ENCODER),
        (encoding(refer_to("item_embeddings.npy", offset=10**12)), NO_ENCODER),
        (encoding(refer_to("item_embeddings.npy", length=10**12)), NO_ENCODER),
        (encoding(rename_input), "has the inputs"),
        (encoding(lambda model: model.graph.ClearField("node")), NO_ENCODER),
        (of_bytes("encoder.onnx", b""), "encoder.onnx"),
        (of_bytes("encoder.onnx", b"nonsense"), NO_ENCODER),
        (of_bytes("encoder.onnx", lambda content: content[: len(content) // 2]), NO_ENCODER),
        (of_bytes("encoder.onnx", bytes(range(256)) * 4), NO_ENCODER),
    ],
)
def test_an_encoder_that_lies(serving: Serving, whole: Release, damage: Damage, message: str) -> None:
    line = refuse(serving, whole, damage)
    assert message in line
    assert "root:" not in line  # nothing of what was referred to


def small_encoder(dtype: Any, window: Any, dimension: int, value: float, *, name: str = "query") -> Damage:
    """A graph that answers one number, whatever it is asked."""
    from onnx import TensorProto, helper, numpy_helper

    def damage(path: Path) -> None:
        constant = numpy_helper.from_array(np.full((1, dimension), value, dtype=np.float32), "constant")
        graph = helper.make_graph(
            [
                helper.make_node("Cast", ["tracks"], ["numbers"], to=TensorProto.FLOAT),
                helper.make_node("ReduceSum", ["numbers", "axis"], ["sum"], keepdims=1),
                helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
                helper.make_node("Cast", ["skipped"], ["flags"], to=TensorProto.FLOAT),
                helper.make_node("ReduceSum", ["flags", "axis"], ["skips"], keepdims=1),
                helper.make_node("Mul", ["skips", "zero"], ["no_skips"]),
                helper.make_node("Add", ["nothing", "no_skips"], ["both"]),
                helper.make_node("Add", ["both", "constant"], [name]),
            ],
            "constant",
            [
                helper.make_tensor_value_info("tracks", dtype, ["batch", window]),
                helper.make_tensor_value_info("skipped", TensorProto.BOOL, ["batch", window]),
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None])],
            [
                constant,
                numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"),
                numpy_helper.from_array(np.array(0, dtype=np.float32), "zero"),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        (path / "encoder.onnx").write_bytes(model.SerializeToString())
        sealed(path)

    return damage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((onnx.TensorProto.INT32, 20, 16, 0.5), "has the inputs"),
        ((onnx.TensorProto.INT64, 7, 16, 0.5), "the encoder fails on a window of 20"),
        ((onnx.TensorProto.INT64, 20, 15, 0.5), "the encoder answers (2, 15), the manifest says (2, 16)"),
        ((onnx.TensorProto.INT64, 20, 16, np.nan), "answers what is no number"),
        ((onnx.TensorProto.INT64, 20, 16, np.inf), "answers what is no number"),
    ],
)
def test_an_encoder_that_does_not_fit(
    serving: Serving, whole: Release, arguments: tuple[Any, int, int, float], message: str
) -> None:
    assert message in refuse(serving, whole, small_encoder(*arguments))


def test_an_encoder_of_another_output(serving: Serving, whole: Release) -> None:
    damage = small_encoder(onnx.TensorProto.INT64, 20, 16, 0.5, name="answer")
    assert "has the outputs" in refuse(serving, whole, damage)


# --- by intent: the index ---


def knowing(**change: Any) -> Damage:
    def damage(path: Path) -> None:
        content = json.loads((path / "index.json").read_text())
        (path / "index.json").write_text(json.dumps(content | change))
        sealed(path)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (of_bytes("index.faiss", b""), "is not a readable FAISS index"),
        (of_bytes("index.faiss", b"nonsense"), "is not a readable FAISS index"),
        (of_bytes("index.faiss", lambda content: content[: len(content) // 2]), "is not a readable FAISS index"),
        (of_bytes("index.faiss", lambda content: content[:4] + b"\xff" * (len(content) - 4)), "index.faiss"),
        (knowing(kind="hnsw"), "needs ef_search"),
        (knowing(kind="flat"), "not of the kind flat"),
        (knowing(kind="nonsense"), "kind"),
        (knowing(tracks=999), "does not belong to this release"),
        (knowing(dimension=8), "does not belong to this release"),
        (knowing(embeddings_sha256="0" * 64), "does not belong to this release"),
        (knowing(surprise=1), "surprise"),
        (of_bytes("index.json", b"nonsense"), "is damaged"),
        (of_bytes("index.json", b"[]"), "index.json"),
        (of_bytes("index.json", b'{"kind": "ivf", "kind": "flat"}'), "holds 'kind' twice"),
        (of_bytes("index.json", b"[" * 100_000), "nested too deeply"),
        (partial(without, "index.json"), "no facts about it"),
        (partial(without, "index.faiss"), "does not belong to this release"),
    ],
)
def test_an_index_that_lies(serving: Serving, whole: Release, damage: Damage, message: str) -> None:
    assert message in refuse(serving, whole, damage)


def test_the_index_of_an_encoder_before_this_one(serving: Serving, whole: Release) -> None:
    """As many tracks, of as many dimensions: only what the index was built from tells it from the right one."""

    def damage(path: Path) -> None:
        matrix = np.load(path / "item_embeddings.npy")
        np.save(path / "item_embeddings.npy", np.roll(matrix, 1, axis=0))
        sealed(path)

    assert "does not belong to this release" in refuse(serving, whole, damage)


def test_an_index_that_names_tracks_that_are_not_there(serving: Serving, whole: Release) -> None:
    def damage(path: Path) -> None:
        index: Any = faiss.read_index(str(path / "index.faiss"))
        size = index.invlists.list_size(0)
        faiss.rev_swig_ptr(index.invlists.get_ids(0), size)[0] = 5000
        faiss.write_index(index, str(path / "index.faiss"))
        sealed(path)

    assert "names tracks that the release does not hold" in refuse(serving, whole, damage)


@pytest.mark.parametrize(
    "flips",
    [
        3,
        pytest.param(20, marks=pytest.mark.slow),
        pytest.param(100, marks=[pytest.mark.slow, pytest.mark.nightly]),
    ],
)
def test_an_index_is_read_whatever_its_bytes_are(serving: Serving, whole: Release, flips: int) -> None:
    """FAISS is C++: a flip may well give an index that is none; it must not end the process or take all memory."""
    content = (whole.path / "index.faiss").read_bytes()
    rng = np.random.default_rng(0)
    for at in [*rng.integers(0, 80, flips).tolist(), *rng.integers(0, len(content), flips).tolist()]:
        path = serving.folder / "bad"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole.path, path)
        changed = bytearray(content)
        changed[at] ^= 0x80
        (path / "index.faiss").write_bytes(changed)
        sealed(path)
        try:
            serving.swap("bad")
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 (not being refused is right as well)
        assert serving.answers() == 20
    (serving.folder / "current").unlink(missing_ok=True)
