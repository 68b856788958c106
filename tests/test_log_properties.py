"""Properties of `segue prepare`: a dataset does not depend on how its log is delivered, and follows the reference."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.log_cases.history import Content, write
from tests.log_delivery import FORMS, PLAIN, Delivery, Play, deliveries, histories, rows, without_names
from tests.log_exports import WITH_TIES, WRITERS, exports
from tests.prepare_runs import contents, needs_ray, ray_of_two
from tests.reference_sessions import Options, Session, reference_sessions
from training.data.dataset import open_dataset
from training.prepare import disk_engine as disk
from training.prepare.disk_engine import disk_engine
from training.prepare.options import LogKind
from training.prepare.pipeline import Engine, prepare, prepare_options
from training.prepare.ray_engine import ray_engine

_DEFAULTS: Final = {"min_session_plays": 1, "sample_half_skips": False}
_FORMS: Final = st.sampled_from(list(FORMS))
_RULES: Final = st.fixed_dictionaries(
    {},
    optional={
        "idle_gap_s": st.sampled_from([200, 1199, 5000]),
        "skip_within_s": st.sampled_from([12, 240]),
        "skip_after_s": st.sampled_from([1, 2, 12]),
        "min_session_plays": st.integers(1, 2),
        "max_session_plays": st.integers(2, 5),
        "min_track_plays": st.integers(0, 1),
    },
)


def examples(everyday: int, slow: int, nightly: int) -> pytest.MarkDecorator:
    """The number of examples: every day, with each change, and at night."""
    slow_marks, nightly_marks = pytest.mark.slow, [pytest.mark.slow, pytest.mark.nightly]
    sizes = [everyday, pytest.param(slow, marks=slow_marks), pytest.param(nightly, marks=nightly_marks)]
    return pytest.mark.parametrize("size", sizes, ids=["few", "more", "many"])


@pytest.fixture(autouse=True)
def nothing_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk engine write everything to files."""
    monkeypatch.setattr(disk, "_IN_MEMORY_BYTES", 0)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray for all tests of this file."""
    with ray_of_two() as started:
        yield started


Dataset = dict[str, bytes]  # the files of a dataset


def prepared(kind: LogKind, files: Mapping[str, Content], engine: Engine | None = None, **options: Any) -> Dataset:
    """The dataset of a log. Nothing else is written."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, content in files.items():
            write(folder / "log" / name, content)
        names = [folder / "log" / name for name in files]
        prepare(kind, names, folder / "out", prepare_options(**{**_DEFAULTS, **options}), engine=engine)
        assert sorted(path.name for path in folder.iterdir()) == ["log", "out"]
        return contents(folder / "out")


def sessions(dataset: Dataset) -> list[Any]:
    """The sessions of a dataset: start, plays, and whether the outcome of the last play is known."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, content in dataset.items():
            (Path(temporary) / name).write_bytes(content)
        catalogue = open_dataset(Path(temporary)).catalogue
        frame = pl.read_parquet(Path(temporary) / "sessions.parquet")
    known = frame["last_known"].to_list() if "last_known" in frame.columns else [True] * len(frame)
    columns = (frame["started_at"].cast(pl.Int64), frame["rows"].to_list(), frame["skipped"].to_list(), known)
    return [
        (start, [(catalogue.track_id(row), skip) for row, skip in zip(plays, skips, strict=True)], last)
        for start, plays, skips, last in zip(*columns, strict=True)
    ]


def of_reference(kind: str, files: Mapping[str, Content], **options: Any) -> list[Any]:
    """The sessions of the reference in the same form."""
    names = {
        "idle_gap_s": "idle_gap",
        "skip_within_s": "skip_within",
        "skip_after_s": "skip_after",
        "min_session_plays": "least",
        "max_session_plays": "most",
        "min_track_plays": "track_plays",
    }
    given = Options(**({"least": 1} | {names[name]: value for name, value in options.items()}))
    encoded = {name: content.encode() if isinstance(content, str) else content for name, content in files.items()}
    found: list[Session] = reference_sessions(kind, encoded, given)
    return [(session.started_at, list(session.plays), session.last_known) for session in found]


def assert_same_dataset(one: Dataset, other: Dataset, options: Sequence[str] = ()) -> None:
    """Both datasets have the same bytes, but for what dataset.json says of files, columns and lines of the log."""
    first, second = (json.loads(dataset["dataset.json"]) for dataset in (one, other))
    assert without_names(first, options) == without_names(second, options)
    for name in ("sessions.parquet", "catalogue.parquet"):
        assert one[name] == other[name], name


def any_left(files: Mapping[str, Content], kind: str, options: Mapping[str, Any]) -> bool:
    """Whether a session remains after the rules."""
    return bool(of_reference(kind, files, **options))


def delivered_alike(
    plays: list[Play], form: str, way: Delivery, engine: Engine | None, options: dict[str, Any]
) -> None:
    """A delivery gives the dataset of a plain CSV file, and that is the one of the reference."""
    whole = rows(plays, form)
    plain = PLAIN.files(whole)
    if not any_left(plain, "events", options):
        return
    one = prepared("events", plain, **options)
    other = prepared("events", way.files(whole), engine, **options, **way.options)
    assert_same_dataset(one, other, list(way.options))
    assert sessions(one) == of_reference("events", plain, **options)


class TestDelivery:
    """One history, delivered in many ways, is one dataset."""

    @examples(25, 80, 1000)
    def test_in_memory(self, size: int) -> None:
        @settings(max_examples=size, deadline=None)
        @given(histories(), _FORMS, deliveries(), _RULES)
        def check(plays: list[Play], form: str, way: Delivery, options: dict[str, Any]) -> None:
            delivered_alike(plays, form, way, None, options)

        check()

    @examples(10, 30, 400)
    def test_on_disk_in_many_portions(self, size: int) -> None:
        @settings(max_examples=size, deadline=None)
        @given(histories(), _FORMS, deliveries(), _RULES, st.integers(40, 400))
        def check(plays: list[Play], form: str, way: Delivery, options: dict[str, Any], split_bytes: int) -> None:
            delivered_alike(plays, form, way, disk_engine(split_bytes), options)

        check()

    @needs_ray
    @pytest.mark.slow
    def test_on_ray(self, ray: Any) -> None:
        @settings(max_examples=8, deadline=None)
        @given(histories(), _FORMS, deliveries(), _RULES)
        def check(plays: list[Play], form: str, way: Delivery, options: dict[str, Any]) -> None:
            delivered_alike(plays, form, way, ray_engine(split_bytes=200), options)

        check()


class TestPlaysThatStartAtOnce:
    """Plays of one second keep the order of the file, whichever way it runs and whatever is delivered again."""

    @examples(10, 30, 400)
    def test_a_part_that_is_delivered_again_changes_nothing(self, size: int) -> None:
        @settings(max_examples=size, deadline=None)
        @given(histories(ties=True), _FORMS, st.data(), st.sampled_from([None, disk_engine(90)]))
        def check(plays: list[Play], form: str, data: st.DataObject, engine: Engine | None) -> None:
            whole = rows(plays, form)
            start = data.draw(st.integers(0, len(whole) - 1))
            again = whole[start : data.draw(st.integers(start + 1, len(whole)))]
            first, second = PLAIN.files(whole), {"later.csv": PLAIN.files(again)["part0.csv"]}
            assert_same_dataset(prepared("events", first), prepared("events", first | second, engine))

        check()

    @examples(10, 30, 400)
    def test_a_file_from_new_to_old_is_read_from_its_end(self, size: int) -> None:
        @settings(max_examples=size, deadline=None)
        @given(histories(ties=True), st.sampled_from(["listeners", "listeners with flags"]))
        def check(plays: list[Play], form: str) -> None:
            seconds: dict[str, set[int]] = {}
            for play in plays:
                seconds.setdefault(play.user, set()).add(play.second)
            once = {
                (play.user, play.second, play.track): play for play in plays
            }  # of two reports, the last line counts
            some = [play for play in once.values() if len(seconds[play.user]) > 1]  # others do not tell the order
            if some:
                whole = rows(some, form)
                one, other = PLAIN.files(whole), PLAIN.files(whole[::-1])
                assert_same_dataset(prepared("events", one), prepared("events", other, disk_engine(120)))
                assert sessions(prepared("events", one)) == of_reference("events", one)

        check()


class TestReference:
    """Sessions and skips are those of the reference, for logs of every kind."""

    @pytest.mark.parametrize("kind", WRITERS)
    @examples(8, 20, 200)
    def test_every_kind(self, kind: LogKind, size: int) -> None:
        @settings(max_examples=size, deadline=None)
        @given(exports(kind, histories(ties=kind in WITH_TIES)), st.sampled_from([None, disk_engine(250)]))
        def check(files: dict[str, Content], engine: Engine | None) -> None:
            assert sessions(prepared(kind, files, engine)) == of_reference(kind, files)

        check()
