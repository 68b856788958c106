"""Plays that are mapped from files, not held in memory: the same arrays, batches and weights, and little memory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from segue.errors import BadDataset  # noqa: E402
from segue.release import MANIFEST  # noqa: E402
from segue.window import Sessions, SessionViews  # noqa: E402
from training.checkpoint import Checkpoints  # noqa: E402
from training.data import dataset as datasets  # noqa: E402
from training.data.dataset import CATALOGUE_FILE, FACTS_FILE, Dataset, open_dataset  # noqa: E402
from training.data.loader import (  # noqa: E402
    chunked_permutation,
    epoch_batches,
    epoch_order,
    trainable,
)
from training.data.sessions_parquet import FLAT_FOLDER, SESSIONS_FILE, GrowingArray, blocks, counts, mapped  # noqa: E402
from training.data.splits import Part, Split, examples, training_part  # noqa: E402
from training.data.synthetic import simulate  # noqa: E402
from training.models.encoders.sasrec import SasRec  # noqa: E402
from training.options import SasRecOptions  # noqa: E402
from training.run import TrainingJob, train  # noqa: E402
from training.trainer import fit  # noqa: E402

SPLITS: tuple[Split, ...] = ("last-play", "new-sessions")
PARTS: tuple[Part, ...] = ("validation", "test")
OPTIONS = SasRecOptions(window=6, epochs=1, dimension=8, heads=2, blocks=1, negatives=20, batch_size=32)

# Writes and opens a dataset of 5 million plays; prints anonymous memory (KiB) before, and the most of it.
_LARGE = """
import sys, threading, time
from pathlib import Path
import numpy as np, polars as pl
from training.data.dataset import RawInteractions, open_dataset, write_listening
from training.data.splits import examples, training_part
from training.data.loader import trainable

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

def watch():
    while True:
        most[0] = max(most[0], anonymous())
        time.sleep(0.002)

codes = np.load(sys.argv[1] + "/codes.npy", mmap_mode="r")
sessions = len(codes) // 20
listening = RawInteractions(
    tracks=pl.DataFrame({"track_id": pl.int_range(1000, eager=True).cast(pl.String)}), codes=codes,
    skipped=np.zeros(len(codes), dtype=np.bool_), offsets=np.arange(0, len(codes) + 1, 20),
    session_ids=pl.int_range(sessions, eager=True).cast(pl.String),
)
folder = Path(sys.argv[1]) / "d"
before, most = anonymous(), [0]
threading.Thread(target=watch, daemon=True).start()
if sys.argv[2] == "write":
    write_listening(folder, listening, "test")
else:
    data = open_dataset(folder)
    pieces, asked = trainable(training_part(data, "last-play"), 20), examples(data, "last-play", "validation")
    pieces.select(np.arange(64)), asked.inputs.select(np.arange(64))
print(before, most[0])
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same dataset, written in memory and written a part at a time."""
    folder = tmp_path_factory.mktemp("large")
    simulate(1000, 400, folder / "plain", seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "MAPPED_FROM", 0)
        simulate(1000, 400, folder / "mapped", seed=3)
    return folder / "plain", folder / "mapped"


@pytest.fixture
def plain(folders: tuple[Path, Path]) -> Dataset:
    return open_dataset(folders[0])


@pytest.fixture
def large(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """The same plays, mapped."""
    monkeypatch.setattr(datasets, "MAPPED_FROM", 0)
    found = open_dataset(folders[1])
    assert found.sessions.rows.dtype == np.int32
    assert not found.sessions.rows.flags.writeable
    return found


def same(one: Sessions, other: Sessions) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("rows", "skipped", "offsets"))


class TestEquality:
    def test_written_a_part_at_a_time_the_files_have_the_same_bytes(self, folders: tuple[Path, Path]) -> None:
        for file in (FACTS_FILE, SESSIONS_FILE, CATALOGUE_FILE):
            assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
        assert not (folders[0] / FLAT_FOLDER).exists()
        assert (folders[1] / FLAT_FOLDER).exists()

    def test_the_arrays_are_the_same(self, plain: Dataset, large: Dataset) -> None:
        assert same(plain.sessions, large.sessions)
        assert plain.session_ids.to_list() == large.session_ids.to_list()

    @pytest.mark.parametrize("split", SPLITS)
    def test_splits_are_the_same(self, plain: Dataset, large: Dataset, split: Split) -> None:
        one, other = training_part(plain, split), training_part(large, split)
        assert same(one.gathered(), other.gathered())
        assert same(one.played().gathered(), other.played().gathered())
        for part in PARTS:
            asked, also = examples(plain, split, part), examples(large, split, part)
            assert same(asked.inputs.gathered(), also.inputs.gathered())
            assert also.targets.dtype == np.int64
            assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(asked[1:], also[1:], strict=True))

    def test_batches_are_the_same(self, plain: Dataset, large: Dataset) -> None:
        def batches(data: Dataset) -> list[list[bytes]]:
            pieces = trainable(training_part(data, "last-play"), 6)
            order = epoch_order(1, 0, len(pieces), len(data.sessions.rows))
            made = epoch_batches(pieces, 50, 6, "next", order)
            return [[tensor.numpy().tobytes() for tensor in batch] for batch in made]

        assert batches(plain) == batches(large)

    def test_a_training_has_the_same_weights(self, plain: Dataset, large: Dataset, tmp_path: Path) -> None:
        def weights(data: Dataset, folder: Path) -> list[bytes]:
            encoder = SasRec(data.catalogue.num_rows, OPTIONS)
            encoder.initialise(torch.Generator().manual_seed(0))
            asked = examples(data, "last-play", "validation")
            fitted = fit(encoder, training_part(data, "last-play"), asked, Checkpoints(folder, {}), Quiet())
            return [value.numpy().tobytes() for value in fitted.encoder.state_dict().values()]

        assert weights(plain, tmp_path / "one") == weights(large, tmp_path / "other")

    def test_a_baseline_counts_the_same(self, plain: Dataset, large: Dataset, tmp_path: Path) -> None:
        from training.options import Options

        for name, data in (("one", plain), ("other", large)):
            train(TrainingJob("markov", Options(), data, "last-play", tmp_path / name), Quiet())
        files = sorted(file.name for file in (tmp_path / "one").iterdir() if file.name != MANIFEST)
        assert len(files) > 2
        for file in files:
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


class Quiet:
    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:
        pass

    def epoch(self, line: dict[str, float]) -> None:
        pass


class TestDerivedFiles:
    @pytest.fixture
    def copy(self, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(datasets, "MAPPED_FROM", 0)
        return Path(shutil.copytree(folders[1], tmp_path / "d"))

    def test_they_are_made_where_they_are_missing(self, copy: Path, plain: Dataset) -> None:
        shutil.rmtree(copy / FLAT_FOLDER)
        assert same(open_dataset(copy).sessions, plain.sessions)
        assert (copy / FLAT_FOLDER / "rows.npy").exists()

    def test_those_of_another_sessions_file_are_made_again(self, copy: Path, folders: tuple[Path, Path]) -> None:
        simulate(1000, 300, copy.parent / "other", seed=5)
        for file in (FACTS_FILE, SESSIONS_FILE, CATALOGUE_FILE):
            shutil.copy(copy.parent / "other" / file, copy / file)
        assert len(open_dataset(copy).sessions) == 300

    def test_damaged_ones_are_refused(self, copy: Path) -> None:
        rows = np.lib.format.open_memmap(copy / FLAT_FOLDER / "rows.npy", mode="r+")
        rows[5] += 1
        rows.flush()
        with pytest.raises(BadDataset, match="its fingerprint is"):
            open_dataset(copy)

    def test_ones_cut_short_are_made_again(self, copy: Path, plain: Dataset) -> None:
        os.truncate(copy / FLAT_FOLDER / "rows.npy", 200)
        assert same(open_dataset(copy).sessions, plain.sessions)

    def test_a_folder_that_cannot_be_written_is_read_all_the_same(
        self, copy: Path, plain: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from training.data import sessions_parquet as session_file

        def refused(*_: object, **__: object) -> None:
            raise PermissionError(13, "read-only")

        shutil.rmtree(copy / FLAT_FOLDER)
        monkeypatch.setattr(session_file, "new_folder", refused)
        assert same(open_dataset(copy).sessions, plain.sessions)
        assert not (copy / FLAT_FOLDER).exists()

    def test_damaged_sessions_are_refused_in_one_line(self, copy: Path) -> None:
        shutil.rmtree(copy / FLAT_FOLDER)
        file = copy / SESSIONS_FILE
        pl.read_parquet(file).with_columns(pl.col("skipped").list.head(1)).write_parquet(file)
        with pytest.raises(BadDataset, match="more or fewer skip flags"):
            open_dataset(copy)
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(BadDataset, match="is damaged"):
            open_dataset(copy)


class TestViews:
    def test_blocks_hold_all_sessions_in_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("segue.window._PLAYS_PER_BLOCK", 5)
        rows = np.arange(1, 15)
        views = SessionViews(
            Sessions(rows, rows % 2 == 0, np.array([0, 14])), np.array([0, 3, 3, 9]), np.array([3, 3, 9, 14])
        )
        found = list(views.blocks())
        assert [block.lengths.tolist() for block in found] == [[3, 0], [6], [5]]
        assert np.concatenate([block.rows for block in found]).tolist() == rows.tolist()
        assert views.played().gathered().rows.tolist() == [1, 3, 5, 7, 9, 11, 13]


class TestOrder:
    @given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 6), st.integers(0, 5))
    def test_every_session_comes_once_and_neighbours_come_together(
        self, sessions: int, chunk: int, at_once: int, seed: int
    ) -> None:
        order = chunked_permutation(np.random.default_rng(seed), sessions, chunk, at_once)
        assert sorted(order.tolist()) == list(range(sessions))
        whole = sessions // chunk == -(-sessions // chunk)  # else one chunk is smaller and the groups do not line up
        for start in range(0, sessions, chunk * at_once) if whole else ():
            assert len(set((order[start : start + chunk * at_once] // chunk).tolist())) <= at_once

    def test_a_dataset_that_fits_in_memory_is_shuffled_as_a_whole(self) -> None:
        expected = np.random.default_rng((4, 2)).permutation(1000)
        assert epoch_order(4, 2, 1000, plays=20_000).tolist() == expected.tolist()

    def test_a_larger_one_is_shuffled_in_chunks_by_seed_and_epoch(self) -> None:
        first, again, later = (epoch_order(4, epoch, 10_000, plays=2_000_000_000).tolist() for epoch in (2, 2, 3))
        assert first == again
        assert first != later
        assert sorted(later) == list(range(10_000))


class TestArrayFiles:
    def test_what_was_appended_is_mapped(self, tmp_path: Path) -> None:
        with GrowingArray(tmp_path / "a.npy", np.int32) as array:
            for part in (np.arange(3), np.arange(0), np.array([7])):
                array.append(part)
        assert mapped(tmp_path / "a.npy", np.int32).tolist() == [0, 1, 2, 7]
        assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2, 7]

    def test_another_dtype_is_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.zeros(3))
        with pytest.raises(ValueError, match="expected one dimension of"):
            mapped(tmp_path / "a.npy", np.int32)

    def test_counts_by_hand(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = np.array([1, 1, 3, 0, 1])
        assert counts(values, 5).tolist() == [1, 3, 0, 1, 0]
        assert counts(values, 5, where=values > 0).tolist() == [0, 3, 0, 1, 0]
        assert [(part.start, part.stop) for part in blocks(5, 2)] == [(0, 2), (2, 4), (4, 5)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_five_million_plays_are_written_and_opened_in_a_part_of_their_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.random.default_rng(0).integers(0, 1000, 5_000_000, dtype=np.uint32))
    grown = {}
    for what in ("write", "open"):
        ran = subprocess.run(
            [sys.executable, "-c", _LARGE, str(tmp_path), what], capture_output=True, text=True, check=True
        )
        before, most = map(int, ran.stdout.split())
        grown[what] = (most - before) / 1024
    # Measured: 136 and 13 MiB; where the arrays are held in memory, 172 and 108.
    assert grown["write"] < 300, grown
    assert grown["open"] < 60, grown
