"""What training, tuning and evaluation say about data that do not support a figure, on the terminal and in files."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch")

from segue.cli import main
from segue.release import open_release
from tests.comparison_results import result as result_file
from tests.datasets import write_dataset
from training.data.dataset import Dataset
from training.data.log_facts import LogFacts, SkipSources
from training.data.splits import examples, training_part
from training.models.ngram import fit_ngram
from training.notes import training_notes
from training.options import Options, SasRecOptions, VmisKnnOptions, WrmfOptions

TRACKS = 30


def listened(path: Path, skip_rate: float = 0.3, sessions: int = 40, tracks: int = TRACKS, **unknown: bool) -> Dataset:
    """Sessions of eight plays. With `inferred` or `no_skips`, last plays have no known outcome."""
    rng = np.random.default_rng(0)
    plays = pl.DataFrame(
        {
            "session_id": np.repeat(np.arange(sessions), 8).astype(str),
            "track_id": [f"t{number}" for number in rng.integers(0, tracks, sessions * 8)],
            "skipped": rng.random(sessions * 8) < skip_rate,
        }
    )
    if any(unknown.values()):
        plays = plays.with_columns(skipped=pl.col("skipped") & (pl.int_range(pl.len()) % 8 != 7))
    known = [False] * sessions if any(unknown.values()) else None
    return write_dataset(path, plays, "tests", {"no_skips": True} if "no_skips" in unknown else None, last_known=known)


class TestTrainingNotes:
    def test_ordinary_data_need_no_note(self, tmp_path: Path) -> None:
        assert training_notes("sasrec", SasRecOptions(), listened(tmp_path / "d"), "last-play") == []

    def test_a_skip_loss_without_skips_learns_nothing(self, tmp_path: Path) -> None:
        data = listened(tmp_path / "d", skip_rate=0)
        [note] = training_notes("sasrec", SasRecOptions(), data, "last-play")
        assert note.startswith("The training sessions have no skip, so the skip loss has nothing to learn from")
        assert training_notes("sasrec", SasRecOptions(beta=0), data, "last-play") == []
        [note] = training_notes("wrmf-nr", WrmfOptions(), data, "new-sessions")
        assert note.endswith("it is trained as wrmf.")
        assert training_notes("wrmf", WrmfOptions(), data, "last-play") == []

    def test_skips_that_are_held_out_are_none_to_learn_from(self, tmp_path: Path) -> None:
        plays = pl.DataFrame({"session_id": ["s"] * 25, "track_id": [f"t{n}" for n in range(25)], "skipped": False})
        held_out = plays.with_columns(skipped=pl.int_range(pl.len()) >= 23)
        data = write_dataset(tmp_path / "d", held_out, "tests")
        skips, one = training_notes("sasrec", SasRecOptions(), data, "last-play")
        assert "nothing to learn from" in skips
        assert one == (
            "There is 1 validation target: the metrics describe one session only, and say nothing about other sessions."
        )

    @pytest.mark.parametrize(
        ("split", "targets", "end"),
        [
            ("last-play", "last", "With --targets known, training and evaluation leave them out."),
            ("new-sessions", "last", "they are left out of the training, and remain targets."),
            ("last-play", "known", "they are left out (--targets known)."),
        ],
    )
    def test_last_plays_of_unknown_outcome(self, split: str, targets: str, end: str, tmp_path: Path) -> None:
        data = listened(tmp_path / "d", inferred=True)
        [note] = training_notes("markov", Options(), data, split, targets)  # type: ignore[arg-type]
        assert note.startswith("Skips were inferred from time, so 40 last plays of 40 sessions have no known outcome")
        assert note.endswith(end)

    @pytest.mark.parametrize(
        ("sources", "begin"),
        [
            (SkipSources(time=280), "Skips were inferred from time, so"),
            (SkipSources(flag=100, time=180), "Some skips were inferred from time, so"),
            (SkipSources(flag=280), "The log does not give the outcome of each play, so"),
        ],
    )
    def test_the_reason_for_unknown_outcomes_is_that_of_the_log(
        self, sources: SkipSources, begin: str, tmp_path: Path
    ) -> None:
        data = listened(tmp_path / "d", inferred=True)
        log = LogFacts(skips_from=sources, unknown_outcomes=40)
        described = replace(data, facts=data.facts.model_copy(update={"log": log}))
        [note] = training_notes("markov", Options(), described, "last-play")
        assert note.startswith(begin)

    def test_a_small_catalogue(self, tmp_path: Path) -> None:
        [note] = training_notes("markov", Options(), listened(tmp_path / "d", tracks=20), "last-play")
        assert note == "The catalogue has 20 tracks, so HR@20 is 1 by construction for each target in it."


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


class TestCommands:
    def test_inferred_skips_are_told_from_training_to_comparison(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        data, release, file = listened(tmp_path / "d", inferred=True).path, tmp_path / "r", tmp_path / "r.json"
        code, _, err = run(capsys, "train", data, "--model", "markov", "--out", release)
        assert code == 0
        assert err.startswith(
            "Note: Skips were inferred from time, so 40 last plays of 40 sessions have no known outcome"
        )
        code, out, err = run(capsys, "evaluate", release, data, "--output", file)
        assert code == 0
        assert "40 of 40 targets count neither as played nor as skipped, which leaves 0 skipped targets" in err
        assert "markov\tskipped\t0\tnot measurable\tnot measurable\tnot measurable" in out
        code, _, err = run(capsys, "compare", file)
        assert code == 0
        assert "One result, so there is nothing to compare: markov finds " in err
        assert "40 of 40 targets count neither as played nor as skipped" in err

    def test_a_policy_for_repeats_is_told_from_evaluation_to_comparison(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        data, release, file = listened(tmp_path / "d", inferred=False).path, tmp_path / "r", tmp_path / "r.json"
        assert run(capsys, "train", data, "--model", "markov", "--out", release)[0] == 0
        asked = ("evaluate", release, data, "--output", file, "--repeat")
        code, out, _ = run(capsys, *asked, "allow")
        assert (code, "repeat=" in out) == (0, False)
        code, out, _ = run(capsys, *asked, "never")
        assert (code, ", full ranking, repeat=never" in out) == (0, True)
        assert json.loads(file.read_text())["repeat"] == "never"
        code, out, err = run(capsys, "compare", file)
        assert (code, ", full ranking, repeat=never" in out) == (0, True)
        assert "last-play, repeat=never: One result, so there is nothing to compare" in err
        for command in (asked, ("recommend", release, "--repeat"), ("reproduce", data, "--out", release, "--repeat")):
            code, _, err = run(capsys, *command, "sometimes")
            assert code == 2
            assert "repeat 'sometimes': expected allow, never, or after:N with N from 1 to 1000" in err
            assert err.count("\n") == 1

    def test_known_targets_from_training_to_comparison(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        data, release, file = listened(tmp_path / "d", inferred=True).path, tmp_path / "r", tmp_path / "r.json"
        code, _, _ = run(capsys, "train", data, "--model", "markov", "--out", release, "--targets", "known")
        assert code == 0
        assert open_release(release).manifest.evaluation["targets"] == "known"
        for part in ("test", "validation"):
            asked = ("evaluate", release, data, "--targets", "known", "--part", part, "--output", file)
            code, out, err = run(capsys, *asked)
            assert (code, "Note: " in err, "not measurable" in out) == (0, False, False)
            assert f"{part} targets of known outcome" in out
        other = json.loads(file.read_text())
        assert other["groups"]["skipped"]["sessions"] > 0
        _, out, _ = run(capsys, "compare", file, "--json")
        assert json.loads(out)["questions"][0]["targets"] == "known"

    def test_a_release_is_not_asked_for_what_its_weights_of_counts_were_fitted_to(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        data = listened(tmp_path / "d", inferred=True).path
        for targets in ("last", "known"):
            asked = ("train", data, "--model", "ngram", "--targets", targets, "--out", tmp_path / targets)
            assert run(capsys, *asked)[0] == 0
        code, _, err = run(capsys, "evaluate", tmp_path / "last", data, "--targets", "known")
        assert code == 2
        assert "was trained without --targets known, on test targets of --targets known" in err
        assert run(capsys, "evaluate", tmp_path / "known", data, "--targets", "known")[0] == 0
        code, _, err = run(capsys, "evaluate", tmp_path / "last", data, "--part", "validation")
        assert code == 0
        assert "weights of counts were fitted to these validation targets" in err

    def test_a_log_without_outcomes_cannot_be_split_by_known_targets(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        data = listened(tmp_path / "d", skip_rate=0, no_skips=True).path
        asked = ("train", data, "--model", "markov", "--targets", "known", "--out", tmp_path / "r")
        code, _, err = run(capsys, *asked)
        assert code == 2
        assert "--targets known" in err
        assert not (tmp_path / "r").exists()

    def test_a_release_records_that_there_was_no_skip_to_learn_from(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        data = listened(tmp_path / "d", skip_rate=0).path
        sizes = ["--set", "epochs=1", "--set", "dimension=8", "--set", "heads=1", "--set", "blocks=1"]
        code, _, err = run(capsys, "train", data, "--out", tmp_path / "r", *sizes)
        assert code == 0
        assert "the skip loss has nothing to learn from" in err
        facts = open_release(tmp_path / "r").manifest.evaluation
        assert facts["training"]["skips"] == 0
        assert facts["training"]["plays"] == 40 * 6
        assert len(facts["notes"]) == 1
        _, out, err = run(capsys, "evaluate", tmp_path / "r", data, "--json")
        assert "learned from sessions without a skip" in err
        assert "learned from sessions without a skip" in json.loads(out)["notes"][0]

    def test_a_small_catalogue_is_marked(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        data = listened(tmp_path / "d", tracks=10).path
        code, out, _ = run(capsys, "train", data, "--model", "markov", "--out", tmp_path / "r")
        assert code == 0
        assert "validation HR@10\t1.0000 (1 by construction)" in out
        _, out, _ = run(capsys, "evaluate", tmp_path / "r", data)
        assert "\t1.000 by construction\t" in out
        assert "10 (1 by construction)\tmarkov" in out

    def test_other_tracks_are_refused(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        data = listened(tmp_path / "d").path
        run(capsys, "train", data, "--model", "markov", "--out", tmp_path / "r")
        plays = pl.DataFrame({"session_id": ["s"] * 5, "track_id": list("abcde"), "skipped": False})
        write_dataset(tmp_path / "other", plays, "tests")
        code, out, err = run(capsys, "evaluate", tmp_path / "r", tmp_path / "other")
        assert (code, out) == (2, "")
        assert err.startswith("segue: 0 of 5 tracks of ")

    def test_tuning_says_what_its_figure_rests_on(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        data = listened(tmp_path / "d", tracks=10).path
        search = ("--model", "vmis-knn", "--search", "neighbours=5", "--trials", 1, "--out", tmp_path / "study")
        code, _, err = run(capsys, "tune", data, *search)
        assert code == 0
        assert "HR@10 and HR@20 are 1 by construction" in err


def test_a_network_for_played_tracks_learns_from_none_of_unknown_outcome(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rescoring = pytest.importorskip("training.models.rescoring")
    data = listened(tmp_path / "d", inferred=True)
    sessions, validation = training_part(data, "new-sessions"), examples(data, "new-sessions", "validation")
    learned: list[Any] = []
    monkeypatch.setattr(rescoring, "fit_network", lambda _, targets: learned.append(targets))
    for chosen in ("next", "next-played"):
        fit_ngram(sessions, data.catalogue, validation, "new-sessions", window=5, rescoring=chosen)
    every, played = learned
    inputs = validation.inputs.gathered()
    known = ~np.delete(inputs.skipped, inputs.offsets[:-1])  # the first play of a session is no target
    assert len(every.rows) == len(known) + len(validation.targets)
    assert len(played.rows) == known.sum()


def test_fine_tuning_keeps_the_validation_targets_unseen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = listened(tmp_path / "d", inferred=True).path
    sizes = ["--set", "epochs=1", "--set", "dimension=8", "--set", "heads=1", "--set", "blocks=1"]
    for name, targets in (("last", "last"), ("known", "known")):
        assert run(capsys, "train", data, "--out", tmp_path / name, "--targets", targets, *sizes)[0] == 0
    again = ("train", data, "--set", "epochs=1", "--targets", "known", "--out")
    code, _, err = run(capsys, *again, tmp_path / "a", "--init-from", tmp_path / "last")
    assert code == 2
    assert "was trained without --targets known" in err
    assert run(capsys, *again, tmp_path / "b", "--init-from", tmp_path / "known")[0] == 0


class TestComparison:
    def test_seeds_of_one_system_are_nothing_to_compare(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        files = [result_file(tmp_path / f"{seed}.json", "sasrec", [1.0, 3.0, 12.0, 2.0], seed) for seed in range(2)]
        code, _, err = run(capsys, "compare", *files)
        assert code == 0
        assert "One system (2 seeds), so there is nothing to compare" in err

    def test_results_of_other_targets_are_not_compared(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        files = [
            result_file(tmp_path / "last.json", "sasrec", [1.0, 3.0, 12.0, 2.0]),
            result_file(tmp_path / "known.json", "markov", [1.0, 3.0, 12.0, 2.0], targets="known"),
        ]
        _, out, err = run(capsys, "compare", *files)
        assert err.count("One result, so there is nothing to compare") == 2
        assert "test targets of known outcome" in out


def log(path: Path, tracks: str = "abcdefghij", *, flags: str | None = None) -> Path:
    """Eight sessions of six plays. `flags` are those of a session; without them, its second play is a skip by time."""
    lines = ["user_id,timestamp,track_id" if flags is None else "session_id,position,track_id,skipped"]
    for session in range(8):
        at = 1_700_000_000 + session * 100_000
        for position in range(6):
            track = tracks[(session + 3 * position) % len(tracks)]
            at += 20 if position == 2 else 240
            lines.append(
                f"u{session},{at},{track}"
                if flags is None
                else f"s{session},{position},{track},{flags[(session + position) % len(flags)]}"
            )
    path.write_text("\n".join(lines) + "\n")
    return path


class TestPreparedLogs:
    """From a log to its evaluation, as a person would."""

    def prepared(self, capsys: pytest.CaptureFixture[str], file: Path) -> Path:
        data = file.with_suffix(".data")
        code, _, _ = run(capsys, "prepare", "events", file, "--out", data)
        assert code == 0
        return data

    def test_inferred_skips(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        data = self.prepared(capsys, log(tmp_path / "log.csv"))
        run(capsys, "train", data, "--model", "markov", "--out", tmp_path / "r")
        _, out, err = run(capsys, "evaluate", tmp_path / "r", data)
        assert "Skips were inferred from time" in err
        assert "8 of 8 targets count neither as played nor as skipped, which leaves 0 skipped targets" in err
        assert "HR@10 and HR@20 are 1 by construction" in err
        assert "markov\tskipped\t0\tnot measurable" in out

    def test_given_skips(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        data = self.prepared(capsys, log(tmp_path / "log.csv", flags="010010"))
        run(capsys, "train", data, "--model", "markov", "--out", tmp_path / "r")
        _, out, err = run(capsys, "evaluate", tmp_path / "r", data)
        assert "inferred" not in err
        assert "not measurable" not in out
        assert "by construction" in out

    def test_plays_without_outcome(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        file, data = log(tmp_path / "log.csv"), tmp_path / "data"
        assert run(capsys, "prepare", "events", file, "--no-skips", "--out", data)[0] == 0
        for split in ("last-play", "new-sessions"):
            release = tmp_path / split
            code, _, err = run(capsys, "train", data, "--model", "markov", "--split", split, "--out", release)
            assert code == 0
            assert "inferred" not in err
        assert open_release(tmp_path / "last-play").manifest.evaluation["training"]["plays"] == 8 * 4
        _, out, err = run(capsys, "evaluate", tmp_path / "last-play", data)
        assert "The log does not tell skipped from played tracks, so all 8 targets count neither" in err
        assert "markov\tplayed\t0\tnot measurable" in out

    def test_one_track(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        data = self.prepared(capsys, log(tmp_path / "log.csv", "a", flags="010000"))
        _, _, err = run(capsys, "train", data, "--model", "markov", "--out", tmp_path / "r")
        assert "The catalogue has 1 track, so every metric is 1 by construction" in err

    def test_one_session(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        lines = log(tmp_path / "log.csv", flags="010000").read_text().splitlines()
        (tmp_path / "one.csv").write_text("\n".join(lines[:7]) + "\n")
        data = self.prepared(capsys, tmp_path / "one.csv")
        _, _, err = run(capsys, "train", data, "--model", "markov", "--out", tmp_path / "r")
        assert "There is 1 validation target: the metrics describe one session only" in err
        _, _, err = run(capsys, "evaluate", tmp_path / "r", data)
        assert "There is 1 test target: the metrics describe one session only" in err


def test_the_demo_says_which_rows_show_the_skip_loss() -> None:
    from segue.cli.demo import _difference

    results = [
        {"groups": {"played": {"HR@10": {"value": a}}, "skipped": {"HR@10": {"value": b}}}}
        for a, b in ((0.75, 0.5), (0.7, 0.6))
    ]
    assert _difference(results) == (
        "With the skip loss, HR@10 is 0.750 instead of 0.700 on played targets (higher is better), and 0.500 instead "
        "of 0.600 on skipped targets (lower is better). The rows `all` mix the two."
    )
    results[1]["groups"]["skipped"]["HR@10"] = None  # type: ignore[assignment]
    assert _difference(results) == ""


class TestWrongArguments:
    def test_a_swapped_release_and_dataset_are_named(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        data, release = listened(tmp_path / "d").path, tmp_path / "r"
        run(capsys, "train", data, "--model", "markov", "--out", release)
        code, _, err = run(capsys, "evaluate", data, release)
        assert (code, err) == (2, f"segue: RELEASE and DATASET are swapped: run `segue evaluate {release} {data}`\n")
        code, _, err = run(capsys, "evaluate", data, data)
        assert code == 2
        assert f"RELEASE {data} is a dataset" in err
        code, _, err = run(capsys, "evaluate", release, release)
        assert code == 2
        assert f"DATASET {release} is a release" in err

    def test_a_release_is_no_result_to_compare(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        run(capsys, "train", listened(tmp_path / "d").path, "--model", "markov", "--out", tmp_path / "r")
        code, _, err = run(capsys, "compare", tmp_path / "r")
        assert code == 2
        assert f"write it with `segue evaluate {tmp_path / 'r'} DATASET --output FILE`" in err


def test_a_recipe_names_what_was_tuned_even_if_it_is_the_default(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    default = VmisKnnOptions().neighbours
    data, study = listened(tmp_path / "d", sessions=60).path, tmp_path / "study"
    search = ("--model", "vmis-knn", "--search", f"neighbours={default}", "--set", "sample=500", "--trials", 1)
    code, _, err = run(capsys, "tune", data, *search, "--split", "new-sessions", "--out", study)
    assert code == 0
    assert tomllib.loads((study / "best.toml").read_text()) == {"vmis-knn": {"neighbours": default}}
    assert f"--recipe {study / 'best.toml'} --split new-sessions --out" in err
