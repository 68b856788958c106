"""Many systems, seeds and splits: what is planned, and that nothing is done twice or mixed up."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

pytest.importorskip("torch")

from segue.errors import BadOption, SegueError
from tests.datasets import write_dataset
from tests.stopwatch import until
from training.data.dataset import Dataset
from training.data.synthetic import simulate
from training.evaluation.reproduce import SYSTEMS, Plan, Wanted, _Commands, plan, plan_notes, run_plan
from training.registry import system_name

SMALL = ("epochs=1", "dimension=8", "negatives=20")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return simulate(1000, 100, tmp_path_factory.mktemp("reproduce") / "dataset")


def planned(dataset: Dataset, folder: Path, **changed: Any) -> Plan:
    given: dict[str, Any] = {
        "systems": ("popularity", "gru4rec"),
        "seeds": (0, 1),
        "splits": ("last-play",),
        "protocols": ("full", "sampled"),
        "recipe": None,
        "settings": SMALL,
    }
    return plan(Wanted(**(given | changed)), dataset.path, dataset.facts.fingerprint, folder)


def silent(*_: object) -> None: ...


def test_every_system_is_what_its_name_says() -> None:
    """The paper's fourteen versions, the other baselines and the open questions."""
    paper = {f"{model}{loss}" for model in ("sasrec", "bert4rec", "gru4rec", "caser") for loss in ("", "+nce")}
    paper |= {f"{model}{version}" for model in ("wrmf", "bpr") for version in ("", "-bl", "-nr")}
    assert len(paper) == 14
    assert paper | {"popularity", "markov", "vmis-knn"} <= set(SYSTEMS)
    for name, system in SYSTEMS.items():
        assert system_name(system.model, {"beta": 0.5 if "+nce" in name else 0.0} | dict(system.settings)) == name


def test_what_is_not_drawn_at_random_runs_once(dataset: Dataset, tmp_path: Path) -> None:
    runs = planned(dataset, tmp_path, splits=("last-play", "new-sessions")).runs
    assert [(run.split, run.name) for run in runs] == [
        (split, name) for split in ("last-play", "new-sessions") for name in ("popularity-0", "gru4rec-0", "gru4rec-1")
    ]


@pytest.mark.slow
def test_runs_are_done_once_and_other_options_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    asked = planned(dataset, tmp_path, seeds=(0,))
    heard: list[str] = []
    results = run_plan(asked, 2, lambda what, done, total: heard.append(f"{what} {done}/{total}"))
    assert sorted(path.name for path in results) == sorted(
        path.name for path in (tmp_path / "last-play").glob("*.json")
    )
    assert len(results) == 4
    assert heard[-1].endswith("2/2")
    systems = {json.loads(path.read_text())["system"] for path in results}
    assert systems == {"popularity", "gru4rec"}

    heard.clear()
    run_plan(asked, 2, lambda what, done, total: heard.append(f"{what} {done}/{total}"))
    assert heard == [" 2/2"]
    with pytest.raises(BadOption, match=r"trained with other options .dimension 8 there, 16 here"):
        run_plan(planned(dataset, tmp_path, seeds=(0,), settings=("epochs=1", "dimension=16")), 1, silent)


def test_known_targets_are_trained_and_evaluated_and_others_are_refused(tmp_path: Path) -> None:
    plays = pl.DataFrame(
        {
            "session_id": [f"s{number // 6}" for number in range(240)],
            "track_id": [f"t{7 * number % 31}" for number in range(240)],
            "skipped": [number % 6 == 4 for number in range(240)],
        }
    )
    inferred = write_dataset(tmp_path / "d", plays, "tests", last_known=[False] * 40)
    chosen: dict[str, Any] = {"systems": ("popularity",), "seeds": (0,), "protocols": ("full",)}
    known = planned(inferred, tmp_path / "out", **chosen, targets="known")
    [note] = plan_notes(known, inferred)
    assert note.endswith("they are left out (--targets known).")
    [result] = (json.loads(path.read_text()) for path in run_plan(known, 1, silent))
    assert (result["targets"], result["unknown_targets"], result["notes"]) == ("known", 0, [])
    assert result["groups"]["skipped"]["sessions"] == 40
    with pytest.raises(BadOption, match="was made with --targets known, here last: choose another --out"):
        run_plan(planned(inferred, tmp_path / "out", **chosen), 1, silent)


def test_one_training_is_evaluated_with_every_policy_for_repeats(dataset: Dataset, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"systems": ("popularity",), "seeds": (0,), "protocols": ("full",)}
    run_plan(planned(dataset, tmp_path, **chosen), 1, silent)
    release = tmp_path / "last-play" / "popularity-0"
    trained = (release / "manifest.json").stat().st_mtime_ns
    asked = planned(dataset, tmp_path, **chosen, repeats=("allow", "never", "after:2", "never"))
    results = run_plan(asked, 1, silent)
    assert {path.name: json.loads(path.read_text())["repeat"] for path in results} == {
        "popularity-0.full.json": "allow",
        "popularity-0.full.never.json": "never",
        "popularity-0.full.after-2.json": "after:2",
    }
    assert (release / "manifest.json").stat().st_mtime_ns == trained
    results[0].write_text(results[1].read_text())
    with pytest.raises(BadOption, match="was made with --repeat never, which its name does not say: choose another"):
        run_plan(asked, 1, silent)


def test_a_plan_on_sessions_without_skips_says_so_once(tmp_path: Path) -> None:
    plays = pl.DataFrame({"session_id": ["a"] * 30 + ["b"] * 30, "track_id": [f"t{n % 30}" for n in range(60)]})
    plain = write_dataset(tmp_path / "d", plays.with_columns(skipped=pl.lit(value=False)), "tests")
    asked = planned(plain, tmp_path / "out", systems=("popularity", "gru4rec", "gru4rec+nce"))
    assert [note[:60] for note in plan_notes(asked, plain)] == [
        "The training sessions have no skip, so the skip loss has not"
    ]


def test_a_failing_command_is_named_with_its_last_line(dataset: Dataset, tmp_path: Path) -> None:
    asked = planned(dataset, tmp_path, seeds=(0,), systems=("popularity",))
    (tmp_path / "last-play").mkdir(parents=True)
    (tmp_path / "last-play" / "popularity-0").write_text("in the way")
    with pytest.raises(SegueError, match="popularity-0 is not a release"):
        run_plan(asked, 1, silent)


def test_the_version_of_a_system_cannot_be_set_away(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=r"make gru4rec\+nce a gru4rec\+nce\+next-played"):
        planned(dataset, tmp_path, systems=("gru4rec+nce",), settings=("objective=next-played",))
    with pytest.raises(BadOption, match="--system 'sasrek': expected one of"):
        planned(dataset, tmp_path, systems=("sasrek",))


def test_a_command_that_is_told_to_end_leaves_no_training_behind(dataset: Dataset, tmp_path: Path) -> None:
    settings = [f"--set={option}" for option in ("epochs=10000", "patience=10000", *SMALL[1:])]
    command = [sys.executable, "-m", "segue", "reproduce", str(dataset.path), "--system", "gru4rec", *settings]
    with subprocess.Popen([*command, "--jobs", "2", "--out", str(tmp_path / "out")], stderr=subprocess.PIPE) as process:
        own = psutil.Process(process.pid)
        until(lambda: len(own.children()) >= 2 or process.poll() is not None, 60)
        trainings = own.children()
        assert len(trainings) == 2
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.decode().rstrip().endswith("segue: interrupted")
    _, alive = psutil.wait_procs(trainings, timeout=30)
    assert not alive


def test_a_command_that_does_not_hear_is_ended_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.evaluation.reproduce._STOP_WAIT_S", 0.2)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    commands = _Commands("1")
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"deaf\n"
        commands._running.add(process)
        commands.stop()
        assert process.wait(10) == -signal.SIGKILL
    with pytest.raises(SegueError, match="stopped"):
        commands.run(["train"], tmp_path / "log")
