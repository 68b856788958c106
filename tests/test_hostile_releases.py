"""A release made to do harm ends or hangs the process that tries it, and no other; the one before it serves on.

Each is vouched for by its manifest: hashes, sizes and shapes are right. It is tried as any is that comes into the
folder of releases (service/releases/trial.py).
"""

import asyncio
import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("faiss")
pytest.importorskip("onnx")

from index.faiss_cpu import KINDS, Kind
from segue.errors import BadRelease
from segue.release import Release
from segue.sessions import Play
from service.releases.loaded import Question
from service.releases.registry import ReleaseRegistry
from service.releases.trial import validate_in_child
from service.settings import Settings
from service.telemetry import Telemetry
from service.threads import Threads
from tests import hostile
from tests.hostile import Change, Hostile, centroids, graph_of_centroids, ids, of_bytes, put, put_at, resized, storage
from tests.stopwatch import Stopwatch


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return hostile.write_plain_release(tmp_path_factory.mktemp("hostile") / "plain")


@pytest.fixture(scope="module")
def made(plain: Release) -> Hostile:
    return Hostile(plain)


class Serving:
    """A worker's releases in a folder of their own."""

    def __init__(self, plain: Release, folder: Path, **settings: Any) -> None:
        shutil.copytree(plain.path, folder / "good")
        self.bad = folder / "bad"
        given = Settings(release=folder / "good", releases_dir=folder, **settings)
        self.releases = ReleaseRegistry(given, Threads(1), Telemetry())

    def swap(self) -> str | None:
        """The line with which the bad release is refused; None where it is served, and answers."""
        before = self.releases.current
        try:
            asyncio.run(self.releases.swap("bad"))
        except BadRelease as error:
            line: str | None = str(error)
        else:
            line = None
        assert self._answers() == 20
        if line is not None:
            assert self.releases.current is before
            assert "\n" not in line
            assert len(line) < 1000
        return line

    def _answers(self) -> int:
        async def ask() -> int:
            return len((await self.releases.current.ranking(Question([Play("t00007")], 20))).rows)

        return asyncio.run(ask())


@pytest.fixture
def serving(plain: Release, tmp_path: Path) -> Serving:
    return Serving(plain, tmp_path)


UNREADABLE = "is not a readable FAISS index"
OTHER_SIZE = "indexes "
FOREIGN = "names tracks that the release does not hold"
CENTROIDS = "has other centroids than lists"
EITHER = ""  # refused in some line, or searched without harm

OF_ALL_KINDS: list[tuple[str, Change, str]] = [
    ("one more track", put("ntotal", hostile.TRACKS + 1), "index.faiss"),
    ("2^40 tracks", put("ntotal", 2**40), "index.faiss"),
    ("another dimension", put("d", 1), "index.faiss"),
    ("a huge dimension", put("d", 2**20), "index.faiss"),
    ("another metric", put("metric_type", 1), "not of the kind"),
    ("cut in half", of_bytes(lambda content: content[: len(content) // 2]), UNREADABLE),
    ("a size of 2^63", of_bytes(lambda content: content[:37] + b"\xff" * 8 + content[45:]), "index.faiss"),
]
OF_SOME_KINDS: list[tuple[tuple[Kind, ...], str, Change, str]] = [
    (("flat", "flat-sq8"), "fewer codes", resized("codes", 16), UNREADABLE),
    (("flat-sq8", "ivf-sq8"), "codes of 4 bits", put("sq.qtype", 1), UNREADABLE),
    (("flat-sq8", "ivf-sq8"), "codes of a type that is none", put("sq.qtype", 99), UNREADABLE),
    (("flat-sq8", "ivf-sq8"), "no ranges", resized("sq.trained", 0), UNREADABLE),
    (("flat-sq8", "ivf-sq8"), "ranges of no number", put("sq.trained", float("nan")), EITHER),
    (("flat-sq8", "ivf-sq8"), "ranges of a huge space", put("sq.d", 2**20), UNREADABLE),
    (("ivf", "ivf-sq8", "ivf-pq", "ivf-pq4"), "a position beyond", ids(10**6), FOREIGN),
    (("ivf", "ivf-sq8", "ivf-pq", "ivf-pq4"), "a position of 2^62", ids(2**62), FOREIGN),
    (("ivf", "ivf-sq8", "ivf-pq", "ivf-pq4"), "a position below", ids(-1), FOREIGN),
    (("ivf", "ivf-sq8", "ivf-pq", "ivf-pq4"), "a position again and again", ids(5), EITHER),
    (("ivf", "ivf-sq8", "ivf-pq", "ivf-pq4"), "more lists", put("nlist", 4096), "index.faiss"),
    (("ivf", "ivf-sq8", "ivf-pq", "ivf-pq4"), "no lists", put("nlist", 0), "index.faiss"),
    (("ivf", "ivf-sq8", "ivf-pq", "ivf-pq4"), "more centroids than lists", centroids(5000), CENTROIDS),
    (("ivf", "ivf-sq8", "ivf-pq", "ivf-pq4"), "fewer centroids than lists", centroids(-10), CENTROIDS),
    (("ivf", "ivf-sq8", "ivf-pq", "ivf-pq4"), "no centroids", centroids(-(10**6)), CENTROIDS),
    (("ivf", "ivf-sq8", "ivf-pq4"), "centroids of a larger space", centroids(dimension=64), "index.faiss"),
    (("ivf", "ivf-pq4"), "a graph of centroids", graph_of_centroids(lambda graph: None), EITHER),
    (("ivf", "ivf-pq4"), "that leads nowhere", graph_of_centroids(put("hnsw.neighbors", 10**6)), UNREADABLE),
    (("ivf", "ivf-pq4"), "that turns in circles", graph_of_centroids(put("hnsw.neighbors", 0)), EITHER),
    (("ivf-pq", "ivf-pq4"), "huge codes", put("pq.M", 2**20), UNREADABLE),
    (("ivf-pq", "ivf-pq4"), "codes of 40 bits", put("pq.nbits", 40), UNREADABLE),
    (("ivf-pq", "ivf-pq4"), "no code book", resized("pq.centroids", 0), UNREADABLE),
    (("ivf-pq", "ivf-pq4"), "a code book of no number", put("pq.centroids", float("nan")), EITHER),
    (("ivf-pq4",), "blocks of none", put("bbs", 0), "index.faiss"),
    (("ivf-pq4",), "blocks of 2^30", put("bbs", 2**30), "bad"),
    (("ivf-pq4",), "a way of searching that is none", put("implem", 99), "fails when it is queried"),
    (("hnsw", "hnsw-sq8"), "neighbours beyond", put("hnsw.neighbors", 10**8), UNREADABLE),
    (("hnsw", "hnsw-sq8"), "neighbours below", put("hnsw.neighbors", -2), UNREADABLE),
    (("hnsw", "hnsw-sq8"), "one neighbour beyond", put_at("hnsw.neighbors", 500, hostile.TRACKS), UNREADABLE),
    (("hnsw", "hnsw-sq8"), "neighbours in circles", put("hnsw.neighbors", 0), EITHER),
    (("hnsw", "hnsw-sq8"), "an entry beyond", put("hnsw.entry_point", 10**8), UNREADABLE),
    (("hnsw", "hnsw-sq8"), "an entry below", put("hnsw.entry_point", -9), UNREADABLE),
    (("hnsw", "hnsw-sq8"), "no entry", put("hnsw.entry_point", -1), EITHER),
    (("hnsw", "hnsw-sq8"), "levels beyond", put("hnsw.max_level", 50), UNREADABLE),
    (("hnsw", "hnsw-sq8"), "an entry that has no such level", put("hnsw.max_level", 3), EITHER),
    (("hnsw", "hnsw-sq8"), "levels of tracks beyond", put("hnsw.levels", 77), UNREADABLE),
    (("hnsw", "hnsw-sq8"), "neighbours that begin beyond", put_at("hnsw.offsets", 500, 2**50), UNREADABLE),
    (("hnsw", "hnsw-sq8"), "neighbours that begin before", put_at("hnsw.offsets", 500, 0), UNREADABLE),
    (("hnsw", "hnsw-sq8"), "fewer neighbours", resized("hnsw.neighbors", 10), UNREADABLE),
    (("hnsw", "hnsw-sq8"), "levels without neighbours", resized("hnsw.cum_nneighbor_per_level", 0), UNREADABLE),
    (("hnsw", "hnsw-sq8"), "vectors of another space", storage(4, hostile.TRACKS), UNREADABLE),
    (("hnsw", "hnsw-sq8"), "fewer vectors", storage(hostile.DIMENSION, 7), UNREADABLE),
]
EVERYDAY: tuple[Kind, ...] = ("flat-sq8", "ivf-pq4", "hnsw")
CASES = [
    *((kind, what, change, expected) for kind in KINDS for what, change, expected in OF_ALL_KINDS),
    *((kind, what, change, expected) for kinds, what, change, expected in OF_SOME_KINDS for kind in kinds),
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_is_not_damaged_is_served(serving: Serving, made: Hostile, kind: Kind) -> None:
    made.with_index(serving.bad, kind)
    assert serving.swap() is None


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        pytest.param(
            *(kind, change, expected), id=f"{kind}: {what}", marks=() if kind in EVERYDAY else pytest.mark.slow
        )
        for kind, what, change, expected in CASES
    ],
)
def test_a_hostile_index(serving: Serving, made: Hostile, kind: Kind, change: Change, expected: str) -> None:
    made.with_index(serving.bad, kind, change)
    line = serving.swap()
    assert expected in (line or "")
    assert expected == EITHER or line is not None


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        *((kind, {"nprobe": value}) for kind in ("ivf", "ivf-pq4") for value in (10**9, 2**70)),
        *((kind, {"ef_search": value}) for kind in ("hnsw", "hnsw-sq8") for value in (10**9, 2**31 - 1, 2**70)),
    ],
)
def test_parameters_that_ask_for_all_memory(
    serving: Serving, made: Hostile, kind: Kind, parameters: dict[str, int]
) -> None:
    made.with_index(serving.bad, kind, parameters=parameters)
    assert "less than or equal to" in (serving.swap() or "")


class TestEncoders:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (hostile.greedy_encoder(10**8), None),  # 400 MB: there is room for that
            (hostile.greedy_encoder(10**10), "the encoder fails on a window"),
            (hostile.greedy_encoder(10**15), "the encoder fails on a window"),
            (hostile.encoder_of_small_batches(100), None),
            (hostile.encoder_of_small_batches(16), "fails when it is queried"),
            (hostile.encoder_of_no_number(5000), None),  # an index finds nothing, and exact search answers
        ],
    )
    def test_what_an_encoder_asks_for(
        self, serving: Serving, made: Hostile, content: bytes, expected: str | None
    ) -> None:
        made.with_encoder(serving.bad, content)
        line = serving.swap()
        assert line is None if expected is None else expected in (line or "")

    def test_one_that_never_ends_is_ended(self, plain: Release, made: Hostile, tmp_path: Path) -> None:
        serving = Serving(plain, tmp_path, release_validation_timeout_s=2)
        made.with_encoder(serving.bad, hostile.endless_encoder())
        with Stopwatch() as watch:
            assert "does not respond within 2 s" in (serving.swap() or "")
        assert watch.seconds < 10


def _end_the_trial(number: int, stderr: bytes = b"") -> None:
    """End the child that tries a release by a signal, after a text on its stderr."""
    while not (pids := [one.pid for one in multiprocessing.active_children() if one.name == "release-trial"]):
        time.sleep(0.01)
    pid = pids[0] or 0
    stderr_of = Path(f"/proc/{pid}/fd/2")
    while not str(stderr_of.readlink()).startswith("pipe:") or stderr_of.readlink() == Path("/dev/fd/2").readlink():
        time.sleep(0.01)
    if stderr:
        stderr_of.write_bytes(stderr)
    os.kill(pid, number)


class TestTheTrial:
    @pytest.mark.parametrize(
        ("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGABRT, "SIGABRT"), (9, "killed")]
    )
    def test_what_ended_it_is_told(self, made: Hostile, tmp_path: Path, number: int, name: str) -> None:
        """As a crash of ONNX Runtime or FAISS would, or the kernel where memory runs out."""
        made.with_encoder(tmp_path / "bad", hostile.endless_encoder())

        ending = threading.Thread(target=_end_the_trial, args=(number,), daemon=True)
        ending.start()
        with pytest.raises(BadRelease, match=rf"crashes the process that loads it \({name}\)"):
            validate_in_child(tmp_path / "bad", 30)
        ending.join()

    def test_its_last_line_on_stderr_is_told(self, made: Hostile, tmp_path: Path) -> None:
        made.with_encoder(tmp_path / "bad", hostile.endless_encoder())
        ending = threading.Thread(
            target=_end_the_trial, args=(signal.SIGABRT, b"loading\nstd::bad_alloc\n\n"), daemon=True
        )
        ending.start()
        with pytest.raises(BadRelease, match=r"crashes the process that loads it \(SIGABRT\): std::bad_alloc; copy it"):
            validate_in_child(tmp_path / "bad", 30)
        ending.join()

    def test_nothing_of_it_stays(self, plain: Release, made: Hostile, tmp_path: Path) -> None:
        made.with_encoder(tmp_path / "bad", hostile.endless_encoder())
        validate_in_child(plain.path, 30)  # Python's fork server stays, once it has started
        before = len(list(Path("/dev/fd").iterdir()))
        for path in (tmp_path / "bad", tmp_path / "nowhere", plain.path):
            with contextlib.suppress(BadRelease):
                validate_in_child(path, 1)
        assert [one for one in multiprocessing.active_children() if one.name == "release-trial"] == []
        assert len(list(Path("/dev/fd").iterdir())) <= before  # those of other tests may be closed meanwhile

    def test_the_pointer_that_a_service_starts_with_is_tried(
        self, plain: Release, made: Hostile, tmp_path: Path
    ) -> None:
        shutil.copytree(plain.path, tmp_path / "good")
        made.with_encoder(tmp_path / "bad", hostile.endless_encoder())
        (tmp_path / "current").write_text("bad")
        settings = Settings(release=tmp_path / "good", releases_dir=tmp_path, release_validation_timeout_s=1)
        assert ReleaseRegistry(settings, Threads(1), Telemetry()).current.live.folder == "good"
