"""What commands show: bars and colours on a terminal, tab-separated fields when piped."""

import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from segue.cli import main
from segue.cli.evaluate import _rich, evaluation_table, hit_rates, other_metrics, skip_measures, target_groups
from segue.cli.terminal import (
    TrainingProgress,
    bar,
    duration,
    facts_table,
    plain_lines,
    print_table,
    say,
    shares,
    sparkline,
    titled,
)
from segue.release import Release
from tests.pseudo_terminal import screen
from training.reports.tables import Table as ComparisonTable

PICTURES = set("█▉▊▋▌▍▎▏▁▂▃▄▅▆▇─━│┃┏┌╭")


def shown(renderable: Any, *, terminal: bool, width: int = 160) -> str:
    stream = io.StringIO()
    Console(file=stream, force_terminal=terminal, width=width, color_system="truecolor").print(renderable)
    return stream.getvalue()


def read(text: str) -> str:
    """What a person reads of a text for a terminal."""
    return screen(text.replace("\n", "\r\n"))


class TestPictures:
    def test_a_bar_is_as_long_as_its_share_to_an_eighth(self) -> None:
        assert bar(0.5, 4).plain == "██  "
        assert bar(0.28125, 4).plain == "█▏  "
        assert (bar(0, 4).plain, bar(-1, 4).plain) == ("    ", "    ")
        assert (bar(1, 4).plain, bar(7, 4).plain) == ("████", "████")

    def test_a_sparkline_rises_from_zero_or_from_its_least(self) -> None:
        assert sparkline([0, 7, 14, None, 14], 5) == "▁▅█ █"
        assert sparkline([7, 14], 5, from_zero=False) == "▁█"
        assert sparkline([1, 2, 3], 2, from_zero=False) == "▁█"
        assert (sparkline([], 5), sparkline([0, 0], 5), sparkline([None], 5)) == ("", "▁▁", " ")

    def test_scores_share_the_best_ones_length_or_the_range_where_some_are_negative(self) -> None:
        assert shares([4.0, 2.0, 0.0]) == [1.0, 0.5, 0.0]
        assert shares([1.0, -1.0]) == [1.0, 0.05]
        assert (shares([]), shares([0.0]), shares([-2.0])) == ([], [0.0], [0.05 + 0.95])


class TestPlainTables:
    def table(self) -> Any:
        table = titled("two [b]things[/b]", Text("as [they] are"))
        for name in ("name", "", "value"):
            table.add_column(name)
        table.add_row(Text("a [b] c\td"), bar(0.5, 4), "1")
        table.add_row("plain", bar(1, 4), "")
        return table

    def test_have_a_line_of_names_and_one_a_row_in_fields_parted_by_tabs_without_pictures(self) -> None:
        assert list(plain_lines(self.table())) == [
            "# two [b]things[/b]",
            "name\tvalue",
            "a [b] c d\t1",
            "plain\t",
            "# as [they] are",
        ]

    def test_of_facts_have_a_name_and_a_value_a_line(self) -> None:
        facts = {"folder": Path("/a [b]"), "tracks": 1234, "rate": 0.123456, "none": None, "in": {"a": 1, "b": None}}
        lines = ["folder\t/a [b]", "tracks\t1,234", "rate\t0.1235", "none\tNone", "in\ta 1"]
        assert list(plain_lines(facts_table("facts", facts))) == ["# facts", *lines]

    def test_are_what_is_printed_where_there_is_no_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_table(self.table())
        assert capsys.readouterr().out.splitlines() == list(plain_lines(self.table()))

    def test_keep_text_in_brackets_on_a_terminal_too(self) -> None:
        assert "a [b] c" in shown(self.table(), terminal=True)


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def result(played: float, skipped: float) -> dict[str, Any]:
    """An evaluation with these hit rates, whatever the k."""
    names = ("HR@1", "HR@5", "HR@10", "HR@20", "MRR@10")
    groups = {"all": (played + skipped) / 2, "played": played, "skipped": skipped}
    return {
        "groups": {name: {"sessions": 1200} | {m: estimate(value) for m in names} for name, value in groups.items()},
        "skip_down_ranking": {"MRR@10 played - skipped": estimate(played - skipped)},
        "catalogue_coverage@20": 0.5,
        "unseen_targets": 0.015,
    }


class TestEvaluations:
    def test_show_metrics_with_intervals_and_bars_of_played_and_skipped_targets(self) -> None:
        results = [("sasrec", result(0.5, 0.25))]
        text = shown(evaluation_table("a title", results), terminal=True)
        assert "\x1b[" in text
        bars = shown(hit_rates(results), terminal=False)
        line = next(line for line in bars.splitlines() if line.split()[:1] == ["10"])
        assert line.count("█") == 12 + 6
        assert list(plain_lines(evaluation_table("a title", results)))[1:5] == [
            "system\ttargets\tsessions\tHR@1\tHR@10\tMRR@10",
            *(
                f"sasrec\t{group}\t1,200\t" + "\t".join([f"{value} [{low}, {high}]"] * 3)
                for group, value, low, high in (
                    ("all", "0.375", "0.365", "0.385"),
                    ("played", "0.500", "0.490", "0.510"),
                    ("skipped", "0.250", "0.240", "0.260"),
                )
            ),
        ]
        plain = list(plain_lines(hit_rates(results)))
        assert plain[1:3] == ["k\tsystem\tplayed\tskipped", "1\tsasrec\t0.500\t0.250"]
        assert list(plain_lines(other_metrics(results)))[2] == "sasrec\t0.250 [0.240, 0.260]\t50.0%\t1.5%"

    def test_of_a_group_without_targets_have_dashes(self) -> None:
        empty = result(0.5, 0.25)
        empty["groups"]["skipped"] = {"sessions": 0} | dict.fromkeys(("HR@1", "HR@5", "HR@10", "HR@20", "MRR@10"))
        empty["skip_down_ranking"]["MRR@10 played - skipped"] = None
        del empty["catalogue_coverage@20"]
        results = [("a", empty), ("b", result(0.4, 0.3))]
        assert list(plain_lines(hit_rates(results)))[2:4] == ["1\ta\t0.500\t-", "1\tb\t0.400\t0.300"]
        assert list(plain_lines(evaluation_table("t", results)))[6] == "a\tskipped\t0\t-\t-\t-"
        assert list(plain_lines(other_metrics(results)))[2] == "a\t-\t-\t1.5%"
        assert "█" in shown(hit_rates(results), terminal=True)

    def test_show_groups_of_targets_and_skip_measures(self) -> None:
        gap = {"HR@1": estimate(0.02), "HR@10": estimate(-0.03), "MRR@10": estimate(0.0)}
        of = {"sessions": 1200, "HR@1": estimate(0.5), "HR@10": None}
        names = ("pair_seen", "pair_unseen", "after_play", "after_skip", "repeat", "new")
        measured = {
            "target_groups": dict.fromkeys(names, of),
            "skip_measures": {
                "raw_gap": gap,
                "matched_gap": None,
                "pairwise_auc": {"sessions": 9, **estimate(0.5)},
                "responsiveness": {
                    "after_skip": estimate(-0.05),
                    "after_play": estimate(0.05),
                    "skip_minus_play": None,
                },
                "reasons": {"matched_gap": "a reason"},
            },
        }
        results = [("sasrec", measured)]
        groups = list(plain_lines(target_groups(results)))
        assert groups[2] == "last two tracks seen together\tsasrec\t1,200\t0.500 [0.490, 0.510]\t-"
        lines = list(plain_lines(skip_measures(results)))
        assert lines[2:4] == ["raw gap, HR@1\t+0.020 [+0.010, +0.030]", "raw gap, HR@10\t-0.030 [-0.040, -0.020]"]
        assert "matched gap, HR@1\t-" in lines
        assert "AUC, played above skipped\t0.500 [0.490, 0.510]" in lines
        assert "similar tracks after a skip\t-5.000 [-6.000, -4.000]" in lines
        assert lines[-1].endswith("No matched gap: a reason.")
        narrow = shown(skip_measures(results, 40), terminal=True, width=200)
        assert "0.020" in narrow
        assert "0.030" not in narrow.replace("-0.030", "")


class TestNarrowTables:
    @pytest.mark.parametrize(
        "names", [("hybrid-bert4rec+nce",), ("hybrid-bert4rec+nce", "hybrid-gru4rec+nce"), ("hybrid+nce", "hybrid")]
    )
    @pytest.mark.parametrize("constant", [False, True])
    def test_show_the_whole_names_of_systems_at_80_columns(self, names: tuple[str, ...], constant: bool) -> None:
        more = {"by_construction": ["HR@10", "HR@20"]} if constant else {}
        results = [(name, result(0.5, 0.25) | more) for name in names]
        for table in (evaluation_table("a title", results, 80), hit_rates(results, 80), other_metrics(results)):
            text = read(shown(table, terminal=False, width=80))
            assert "…" not in text
            assert {name for name in names if name not in text.split()} == set()
            assert max(map(len, text.splitlines())) <= 80
        narrow = read(shown(evaluation_table("a title", results, 40), terminal=False, width=40))
        assert "…" not in narrow  # less than is promised: names are folded

    def test_of_a_comparison_leave_out_seeds_then_intervals(self) -> None:
        row = ["hybrid-bert4rec+nce", "1", *["0.2333 [0.1667, 0.3002]"] * 3]
        made = ComparisonTable("Every system", ["system", "seeds", "HR@1", "HR@10", "MRR@10"], [row])
        assert [column.header for column in _rich(made, None).columns] == list(made.columns)
        assert [column.header for column in _rich(made, 80).columns] == ["system", "HR@1", "HR@10"]
        narrow = read(shown(_rich(made, 60), terminal=False, width=60))
        assert narrow.split()[2:6] == ["system", "HR@1", "HR@10", "MRR@10"]
        assert "[" not in narrow


class TestMessages:
    def test_are_one_line_where_there_is_no_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        say("Release written to r.", "segue evaluate r d", "segue serve r")
        assert capsys.readouterr().err == "Release written to r. Next: segue evaluate r d, or segue serve r\n"


class TestTraining:
    LINES = (
        {"epoch": 1, "loss": 5.5, "nll": 5.0, "nce": 0.5, "HR@10": 0.1, "sessions_per_s": 1000.0},
        {"epoch": 2, "loss": 4.5, "nll": 4.2, "nce": 0.3, "HR@10": 0.3, "sessions_per_s": 2000.0},
        {"epoch": 3, "loss": 4.0, "nll": 3.8, "nce": 0.2, "HR@10": 0.2, "sessions_per_s": 2000.0},
    )

    def run(self, *, terminal: bool) -> str:
        """Three epochs of ten seconds."""
        stream = io.StringIO()
        ticks = itertools.count(0.0, 5.0)  # the start, then a step and the end of each epoch
        console = Console(file=stream, force_terminal=terminal, width=150)
        with TrainingProgress(3, console, lambda: next(ticks)) as progress:
            for number, line in enumerate(self.LINES):
                progress.step(number, 50, 100, {"loss": line["loss"]})
                progress._progress.refresh()
                progress.epoch(line)
        return stream.getvalue()

    def test_is_a_line_for_every_epoch_where_there_is_no_terminal(self) -> None:
        assert self.run(terminal=False).splitlines() == [
            "epoch 1/3  loss 5.5000  nll 5.0000  nce 0.5000  validation HR@10 0.1000  1,000 sessions/s",
            "epoch 2/3  loss 4.5000  nll 4.2000  nce 0.3000  validation HR@10 0.3000  2,000 sessions/s",
            "epoch 3/3  loss 4.0000  nll 3.8000  nce 0.2000  validation HR@10 0.2000  2,000 sessions/s",
        ]

    def test_shows_on_a_terminal_how_validation_goes_which_was_best_and_the_time_left(self) -> None:
        text = self.run(terminal=True)
        assert "\x1b[" in text
        assert "▁█▅" in text
        assert text.count("best") == 2  # the third is none
        # Half of the first epoch took 5 s; then epochs take 10 s, of which 5 are gone.
        assert "at most 0:25 left" in text
        assert "at most 0:15 left" in text
        assert "at most 0:05 left" in text

    @pytest.mark.parametrize(
        ("width", "words"),
        [
            (140, "Training 1 of 2, epoch 1/3 BAR loss 5.000  nll 4.000  nce 0.500  7 sessions/s  at most 0:50 left"),
            (100, "Training 1 of 2, epoch 1/3 BAR loss 5.000  7 sessions/s  at most 0:50 left"),
            (80, "Training 1 of 2, epoch 1/3 BAR at most 0:50 left"),
        ],
    )
    def test_shows_phase_and_time_left_in_one_line_of_any_width(self, width: int, words: str) -> None:
        """First the terms of the loss are left out, then the speed, then the loss."""
        progress, stream = self.started(width, {"loss": 5.0, "nll": 4.0, "nce": 0.5})
        with progress:
            progress._progress.refresh()
            text = stream.getvalue()
        [last] = [line for line in read(text).splitlines() if "Training" in line]
        assert len(last) <= width
        assert " ".join(re.sub("[━╸╺]+", "BAR", last).split()) == " ".join(words.split())

    def test_shows_no_skip_loss_where_there_is_none(self) -> None:
        progress, stream = self.started(140, {"loss": 5.0, "nll": 5.0, "nce": 0.0})
        with progress:
            pass
        assert "loss 5.000" in stream.getvalue()
        assert "nce" not in stream.getvalue()

    def started(self, width: int, terms: dict[str, float]) -> tuple[TrainingProgress, io.StringIO]:
        """Half of the first of three epochs, after five seconds."""
        stream = io.StringIO()
        ticks = itertools.count(0.0, 5.0)
        console = Console(file=stream, force_terminal=True, width=width, color_system=None)
        progress = TrainingProgress(3, console, lambda: next(ticks), phase="Training 1 of 2")
        progress._progress.get_time = itertools.count(0.0, 5.0).__next__
        progress.step(0, 15, 100, terms)
        progress.step(0, 50, 100, terms)
        return progress, stream

    def test_of_a_model_without_epochs_shows_no_time_that_nobody_knows(self) -> None:
        stream = io.StringIO()
        with TrainingProgress(1, Console(file=stream, force_terminal=True, width=150)) as progress:
            progress.step(0, 0, 0, {})
            progress.step(0, 3, 10, {})
            progress._progress.refresh()
        assert "left" not in stream.getvalue()

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (65, "1:05"), (3600, "1:00:00"), (7325, "2:02:05")]
    )
    def test_tells_time_in_minutes_and_hours(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text


class TestRecommend:
    def run(self, capsys: pytest.CaptureFixture[str], release: Release, *arguments: str) -> tuple[str, str]:
        assert main(["recommend", str(release.path), *arguments]) == 0
        captured = capsys.readouterr()
        return captured.out, captured.err

    def test_is_plain_and_parseable_where_it_is_piped(
        self, capsys: pytest.CaptureFixture[str], tiny_release: Release
    ) -> None:
        out, err = self.run(capsys, tiny_release, "--play", "g0-t00", "--skip", "g1-t00", "--play", "nobody", "-k", "3")
        assert err == f"Ignored (not in the catalogue of {tiny_release.name}): nobody\n"
        assert "\x1b" not in out
        assert not set(out) & PICTURES
        title, names, *lines = out.splitlines()
        assert title == f"# Top 3 from {tiny_release.name} (session: 1 played, 1 skipped)"
        assert names.split("\t") == ["rank", "track_id", "score", "title", "artist"]
        assert [line.split("\t") for line in lines] == [
            [str(rank), f"g0-t{number}", lines[rank - 1].split("\t")[2], f"Song {number}", "Artist 0"]
            for rank, number in ((1, "11"), (2, "10"), (3, "09"))  # the skip outweighs the taste for popular tracks
        ]
        assert all(0.9 < float(line.split("\t")[2]) < 1 for line in lines)

    def test_shows_what_raises_and_what_lowers_each_track(
        self, capsys: pytest.CaptureFixture[str], tiny_release: Release
    ) -> None:
        """Two genres, one skipped: its tracks rank last, and would not without the skip."""
        events = ["--play", "g0-t00", "--skip", "g0-t05", "--play", "g1-t00"]
        out, _ = self.run(capsys, tiny_release, *events, "-k", "70", "--repeat", "never", "--explain")
        names, *lines = (line.split("\t") for line in out.splitlines()[1:] if not line.startswith("#"))
        assert names[-3:] == ["raised by", "lowered by", "rank without skips"]
        by_track = {line[1]: line for line in lines}
        pulled = by_track["g0-t01"][-3]
        assert pulled.startswith("+1.0")
        assert pulled.endswith("Song 00")
        assert by_track["g0-t01"][-2].startswith("-2.")
        assert by_track["g0-t01"][-2].endswith("Song 05, skipped")
        assert int(by_track["g0-t01"][-1]) < int(by_track["g0-t01"][0])
        assert out.splitlines()[-1].startswith("# excluded (already played): g1-t00 (rank 12), g0-t05 (rank 67)")

    def test_explains_to_programs_what_adds_up_to_the_score(
        self, capsys: pytest.CaptureFixture[str], tiny_release: Release
    ) -> None:
        events = ["--play", "g0-t00", "--play", "g0-t01", "--skip", "g1-t00", "-k", "5", "--repeat", "never", "--json"]
        plain = json.loads(self.run(capsys, tiny_release, *events)[0])
        assert set(plain) == {"release", "source", "items"}
        told = json.loads(self.run(capsys, tiny_release, *events, "--explain")[0])
        why = told.pop("explanation")
        assert told == plain
        assert [one["outcome"] for one in why["plays"]] == ["played", "played", "skipped"]
        sums = [sum(line) for line in why["contributions"]]
        assert sums == pytest.approx([item["score"] for item in told["items"]], abs=1e-5)
        assert len(why["ranks_without_skips"]) == 5
        assert why["filtered"][0] == {"track_id": "g0-t00", "rank": 1, "reason": "heard"}

    def test_without_plays_says_that_it_is_the_most_played(
        self, capsys: pytest.CaptureFixture[str], tiny_release: Release
    ) -> None:
        out, _ = self.run(capsys, tiny_release, "-k", "1", "--explain")
        assert out.startswith(f"# Top 1 from {tiny_release.name} by popularity")
        assert out.splitlines()[2].split("\t")[-3:-1] == ["", ""]
