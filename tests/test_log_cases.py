"""`segue prepare` on the logs of tests/log_cases: sessions and skips, the report, and refusals, with every engine."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import polars as pl
import pytest

from segue.cli import main
from tests.log_cases import CASES
from tests.log_cases.case import Case
from tests.log_cases.history import TITLES, write
from tests.prepare_runs import needs_ray, ray_of_two
from tests.reference_sessions import Options, reference_sessions
from training.data.dataset import open_dataset
from training.prepare import disk_engine as disk

_LETTERS: Final = {title: letter for letter, (_, title) in TITLES.items()}
_TINY_SPLIT: Final = 100  # bytes: a few lines
# Reading, merging, given and inferred skips, given sessions, and a refusal.
_ON_RAY: Final = (
    "events: two files overlap",
    "events: the file with flags is the first",
    "events: two tracks at one position",
    "events: flags coded 0 and 2",
    "events: a field of some lines",
    "events: a field that is not there",
    "lfm1k: lines twice",
    "mssd: the training set and the test set",
    "mssd: second halves of sessions",
)


class Run:
    """`segue prepare` on a case, in a folder of its own."""

    def __init__(self, case: Case, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.case = case
        self.folder = folder
        self._capfd = capfd
        for name, content in case.files.items():
            write(folder / name, content)
        self._before = sorted(folder.rglob("*"))

    def __call__(self, engine: str, *more: str) -> tuple[int, str, str]:
        """Run the command and return the exit code, standard output and standard error."""
        sources = self.case.sources or tuple(self.case.files)
        least = self.case.min_session_plays
        options = [*shlex.split(self.case.options), *(["--min-session-plays", str(least)] if least else [])]
        code = main(["prepare", self.case.kind, *sources, *options, "--out", engine, "--engine", engine, *more])
        out, err = self._capfd.readouterr()
        assert re.findall(r"[^\n\t -~\u00a1-\ufffc\U00010000-\U0010ffff]", out + err) == []
        assert "Traceback" not in err
        for word in self.case.never:
            assert word not in out + err
        return code, out, err

    def left(self) -> list[str]:
        """The files that the runs left."""
        return [
            str(path.relative_to(self.folder)) for path in sorted(self.folder.rglob("*")) if path not in self._before
        ]


def letter(track: str) -> str:
    """The letter of an invented track by its id: a title, a URI or `t_a`."""
    if track.startswith(("spotify:track:INVENTED", "t_")):
        return track[-1].lower()
    return _LETTERS.get(track.rpartition(" — ")[2], track)


def text(sessions: Iterable[Iterable[tuple[str, bool]]]) -> str:
    """Sessions as in `a b* | c`."""
    return " | ".join(" ".join(letter(track) + "*" * skipped for track, skipped in plays) for plays in sessions)


def plays_of(folder: Path) -> list[list[tuple[str, bool]]]:
    """The sessions of a dataset: tracks, and whether they were skipped."""
    dataset = open_dataset(folder)
    rows, skipped = dataset.sessions.rows.tolist(), dataset.sessions.skipped.tolist()
    plays = [(dataset.catalogue.track_id(row), skip) for row, skip in zip(rows, skipped, strict=True)]
    return [plays[start:end] for start, end in pairwise(dataset.sessions.offsets.tolist())]


def starts(folder: Path) -> list[Any]:
    """The starts of the sessions in ms since 1970, or None."""
    return pl.read_parquet(folder / "sessions.parquet")["started_at"].cast(pl.Int64).to_list()


@pytest.fixture
def run(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """A run of the case with a name; the disk engine reads splits of a few lines, and keeps nothing in memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(disk, "_IN_MEMORY_BYTES", 0)
    engine = disk.disk_engine
    monkeypatch.setattr(disk, "disk_engine", lambda: engine(_TINY_SPLIT))
    return Run(CASES[request.param], tmp_path, capfd)


def cases(*, refused: bool) -> pytest.MarkDecorator:
    """The cases that are refused, or read."""
    return pytest.mark.parametrize(
        "run", [name for name, case in CASES.items() if bool(case.refused) == refused], indirect=True
    )


@cases(refused=False)
def test_the_sessions_are_as_written_by_hand_and_as_the_reference_has_them(run: Run) -> None:
    code, out, err = run("polars")
    assert code == 0, err
    assert text(plays_of(run.folder / "polars")) == run.case.expected
    files = {
        name: content.encode() if isinstance(content, str) else content for name, content in run.case.files.items()
    }
    reference = reference_sessions(run.case.kind, files, Options.parse(run.case.options, run.case.min_session_plays))
    assert text(session.plays for session in reference) == run.case.expected
    assert starts(run.folder / "polars") == [session.started_at for session in reference]
    for words in run.case.says:
        assert re.search(words, (out + err).lower().replace(",", "")), f"{words} is not in\n{out}\n{err}"

    code, json_out, _ = run("disk", "--json")
    assert code == 0
    for name in ("sessions.parquet", "catalogue.parquet", "dataset.json"):
        assert (run.folder / "disk" / name).read_bytes() == (run.folder / "polars" / name).read_bytes(), name
    facts = json.loads(json_out)
    assert facts["malformed"] == run.case.malformed
    assert {name: facts["log"][name] for name in run.case.log} == run.case.log
    assert run.left() == sorted(
        f"{engine}{name}"
        for engine in ("disk", "polars")
        for name in ("", "/catalogue.parquet", "/dataset.json", "/sessions.parquet")
    )


@cases(refused=True)
def test_a_refusal_says_what_where_and_what_to_do(run: Run) -> None:
    code, out, message = run("polars")
    assert (code, out) == (2, "")
    assert len(message.splitlines()) <= 2, message
    for words in run.case.refused:
        assert re.search(words, message.lower()), f"{words} is not in\n{message}"
    assert run("disk") == (2, "", message)
    assert run.left() == []


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray for all tests of this file."""
    with ray_of_two() as started:
        yield started


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("run", _ON_RAY, indirect=True)
def test_ray_gives_the_same(run: Run, ray: Any) -> None:
    code, _, message = run("polars")
    ray_code, _, ray_message = run("ray")
    assert (ray_code, ray_message.replace(f"{run.folder}/", "")) == (code, message.replace("polars", "ray"))
    for name in ("sessions.parquet", "catalogue.parquet", "dataset.json") if not code else ():
        assert (run.folder / "ray" / name).read_bytes() == (run.folder / "polars" / name).read_bytes(), name
