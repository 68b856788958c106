"""Results side by side: statistics against enumeration and by hand, tables, the command."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("altair")
pytest.importorskip("jinja2")

from segue.cli import main
from segue.errors import InputError
from tests.comparison_results import gaining, result
from training.evaluation.compare import tables as paper
from training.evaluation.compare.report import as_json, as_markdown, measure
from training.evaluation.compare.results import read_results
from training.evaluation.compare.statistics import (
    differences,
    group_estimates,
    holm,
    kendall,
    pairs,
    permutation_test,
    skip_gaps,
)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return gaining(tmp_path)


class TestPermutationTest:
    def test_against_every_assignment_of_signs(self) -> None:
        changes = np.array([0.3, -0.1, 0.2, 0.4, 0.1, 0.25, -0.05, 0.15])
        signs = np.array(list(itertools.product((-1, 1), repeat=len(changes))))
        exact = np.mean(np.abs(signs @ changes) >= abs(changes.sum()) - 1e-12)
        (found,) = permutation_test(changes[:, None], np.random.default_rng(0), 20_000)
        assert found == pytest.approx(exact, abs=0.01)

    def test_no_change_has_p_1(self) -> None:
        assert permutation_test(np.zeros((50, 1)), np.random.default_rng(0), 200).tolist() == [1.0]

    def test_the_smallest_p_is_one_over_all(self) -> None:
        assert permutation_test(np.ones((200, 1)), np.random.default_rng(0), 999).tolist() == [0.001]

    def test_where_nothing_is_there_p_is_uniform(self) -> None:
        rng = np.random.default_rng(0)
        found = permutation_test(rng.normal(size=(100, 400)), rng, 500)
        assert np.mean(found < 0.05) == pytest.approx(0.05, abs=0.03)
        assert np.mean(found < 0.5) == pytest.approx(0.5, abs=0.08)


class TestHolm:
    def test_by_hand(self) -> None:
        # Sorted .01 x 4, .02 x 3, .03 x 2, .04 x 1: 0.04, 0.06, 0.06, 0.06 (never below the one before).
        assert holm(np.array([0.03, 0.01, 0.04, 0.02])).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])

    def test_no_p_above_1_and_none_at_all(self) -> None:
        assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
        assert len(holm(np.array([]))) == 0


def test_kendall_by_hand() -> None:
    assert kendall([1, 2, 3], [1, 2, 3]) == 1.0
    assert kendall([1, 2, 3], [3, 2, 1]) == -1.0
    assert kendall([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)


class TestPaper:
    def test_figures_of_the_tables(self) -> None:
        assert paper.TABLE_1["MSSD"]["sasrec+nce", "HR@10"] == 0.706
        assert paper.TABLE_1["LFM-2B"]["bpr-nr", "HR@20"] == 0.348
        assert paper.TABLE_1["LFM-1K"]["wrmf", "MAP@10"] == 0.028
        assert paper.TABLE_2["MSSD"]["bert4rec+nce"] == 0.950
        assert all(len(table) == 14 * 5 for table in paper.TABLE_1.values())

    def test_the_gains_that_the_paper_prints_follow_from_its_figures(self) -> None:
        table = paper.TABLE_1["MSSD"]
        for system, metric, printed in (("sasrec", "HR@1", 9), ("bert4rec", "MAP@10", 99), ("caser", "HR@20", 5)):
            gain = 100 * (table[f"{system}+nce", metric] / table[system, metric] - 1)
            assert gain == pytest.approx(printed, abs=0.6)


class TestComparison:
    def test_what_is_held_against_what(self) -> None:
        found = {(pair.system, pair.against) for pair in pairs(["sasrec", "sasrec+nce", "markov", "wrmf", "wrmf-nr"])}
        assert found == {("sasrec+nce", "sasrec"), ("wrmf-nr", "wrmf"), ("sasrec", "markov"), ("sasrec+nce", "markov")}

    def test_a_gain_is_found_where_there_is_one(self, files: list[Path]) -> None:
        (asked,) = [asked for question, asked in read_results(files).items() if question.protocol == "full"]
        found = {(d.pair.system, d.group, d.metric): d for d in differences(asked, 2000) if d.pair.why == "feedback"}
        gained = found["gru4rec+nce", "all", "HR@10"]
        assert gained.significant
        assert gained.verdict() == f"better by {gained.estimate.value:.4f}"
        assert gained.estimate.low > 0
        before, after = (asked.systems[s].values("HR@10").mean() for s in ("gru4rec", "gru4rec+nce"))
        assert gained.estimate.value == pytest.approx(after - before)
        assert gained.gain_percent is not None
        assert gained.gain_percent.value == pytest.approx(100 * (after / before - 1))
        assert found["sasrec+nce", "all", "HR@10"].verdict() == "no significant difference"
        assert gained.p_corrected >= gained.p

    def test_a_session_counts_with_its_mean_over_the_seeds(self, tmp_path: Path) -> None:
        paths = [result(tmp_path / f"{s}.json", "caser", [1, 1, 50, 50], s) for s in (0, 1)]
        paths.append(result(tmp_path / "2.json", "caser", [50, 1, 50, 1], 2))
        (asked,) = read_results(paths).values()
        assert asked.systems["caser"].values("HR@10").tolist() == pytest.approx([2 / 3, 1, 0, 1 / 3])
        assert asked.systems["caser"].of_each_seed("HR@10", asked.members("skipped")).tolist() == [0.5, 0.5, 1.0]

    def test_tables_hold_the_figures(self, files: list[Path]) -> None:
        (section,) = measure(files, 500)
        text = as_markdown([section])
        value = section.by_protocol["full"].estimates["gru4rec+nce", "all", "HR@1"].value
        assert f"**{value:.3f} (" in text  # bold, with its gain
        assert "| HR@1 | paper (MSSD) | 0.377 | 0.410 | 0.210 | 0.235 |" in text
        assert "Neural systems that do not beat the Markov chain's HR@1: none." in text
        assert "Kendall's tau" in text
        content = as_json([section])
        assert content["questions"][0]["systems"]["gru4rec+nce"]["groups"]["all"]["HR@1"]["value"] == value
        json.dumps(content)

    def test_results_of_other_policies_for_repeats_are_apart_and_named(self, tmp_path: Path) -> None:
        """A result without the key is older than the option, and was measured with the default."""
        policies = ("never", "allow", "after:5")
        paths = [result(tmp_path / f"{repeat}.json", "sasrec", [1, 3], repeat=repeat) for repeat in policies]
        paths.insert(0, result(tmp_path / "old.json", "caser", [1, 2]))
        found = read_results(paths)
        assert [(question.repeat, [*asked.systems]) for question, asked in found.items()] == [
            ("allow", ["caser", "sasrec"]),
            ("after:5", ["sasrec"]),
            ("never", ["sasrec"]),
        ]
        titles = [str(question) for question in found]
        same = "test targets, last-play split, full ranking"
        assert titles == [same, f"{same}, repeat=after:5", f"{same}, repeat=never"]
        sections = measure(paths, 100)
        assert [section.setting for section in sections] == [
            *("last-play", "last-play, repeat=after:5", "last-play, repeat=never")
        ]
        text = as_markdown(sections)
        assert "## Spotify sessions (MSSD): last play of each session, repeat=never" in text
        assert f"Every system, {same}, repeat=after:5" in text
        assert [one["repeat"] for one in as_json(sections)["questions"]] == ["allow", "after:5", "never"]

    def test_results_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        first = result(tmp_path / "a.json", "caser", [1, 2])
        cases = {
            "second result of caser with seed 0": result(tmp_path / "b.json", "caser", [1, 3]),
            "other targets": result(tmp_path / "c.json", "sasrec", [1, 3], target_skipped=[True, True]),
            "has no 'system'": tmp_path / "d.json",
            "cannot be read": tmp_path / "missing.json",
        }
        cases["has no 'system'"].write_text("{}")
        for message, path in cases.items():
            with pytest.raises(InputError, match=message):
                read_results([first, path])


def measured_skips(path: Path, system: str, ranks: Any, seed: int = 0, **changed: Any) -> Path:
    """A result with groups and skip measures. Every second target is skipped; the strata are the halves of the list."""
    half = len(ranks) // 2
    response = {
        key: {"value": 0.01 * (seed + 1), "low": 0.0, "high": 0.02} for key in ("after_skip", "skip_minus_play")
    }
    added: dict[str, Any] = {
        "skip_measures": {"pairwise_auc": None, "responsiveness": response, "reasons": {}},
        "target_group_members": {"repeat": [True] * half + [False] * half, "pair_seen": [None] * 2 * half},
        "target_stratum": [0] * half + [1] * half,
    }
    return result(path, system, ranks, seed, **added | changed)


class TestSkipMeasures:
    def files(self, folder: Path) -> list[Path]:
        # Ranks of played, skipped, played, skipped targets of each stratum.
        return [
            measured_skips(folder / "a.json", "sasrec", [1, 50, 1, 1, 50, 1, 50, 1]),
            measured_skips(folder / "b.json", "sasrec+nce", [1, 50, 1, 50, 1, 1, 50, 50]),
            measured_skips(folder / "c.json", "sasrec+nce", [1, 50, 1, 50, 1, 1, 50, 50], 1),
            measured_skips(folder / "d.json", "markov", [1] * 8),
        ]

    def test_gaps_and_paired_differences_by_hand(self, tmp_path: Path) -> None:
        (asked,) = read_results(self.files(tmp_path)).values()
        gaps = skip_gaps(asked)
        # sasrec: strata 1 - 1/2 and 0 - 1, so -1/4. sasrec+nce: 1 - 0 and 1/2 - 1/2, so 1/2. markov: no gap.
        assert gaps["sasrec"].matched["HR@1"].value == pytest.approx(-1 / 4)
        assert gaps["sasrec+nce"].matched["HR@1"].value == pytest.approx(1 / 2)
        assert gaps["sasrec+nce"].against == "sasrec"
        assert gaps["sasrec+nce"].difference["HR@1"].value == pytest.approx(3 / 4)
        assert gaps["sasrec"].against == "markov"
        assert gaps["sasrec"].difference["HR@1"].value == pytest.approx(-1 / 4)
        assert (gaps["markov"].against, gaps["markov"].difference) == (None, {})
        assert gaps["markov"].matched["HR@10"].value == gaps["markov"].raw["HR@10"].high == 0.0

    def test_groups_of_targets_by_hand(self, tmp_path: Path) -> None:
        (asked,) = read_results(self.files(tmp_path)).values()
        found = group_estimates(asked)
        assert found["sasrec", "repeat", "HR@1"].value == 3 / 4
        assert found["sasrec", "new", "HR@1"].value == 1 / 2
        assert not any(group.startswith(("pair", "after")) for _, group, _ in found)

    def test_tables_and_json_have_them(self, tmp_path: Path) -> None:
        (section,) = measure(self.files(tmp_path), 100)
        groups, skips = (
            next(table for table in section.tables if table.title.startswith(start))
            for start in ("Groups of targets", "Skip measures")
        )
        assert list(groups.columns) == ["system", "HR@1 repeat", "HR@10 repeat", "HR@1 new", "HR@10 new"]
        row = next(row for row in skips.rows if row[0] == "sasrec+nce")
        assert row[1].startswith("+0.5000 [")
        assert row[3] == "sasrec"
        assert row[-3:] == ["-", "+1.5000 [+0.0000, +2.0000]", "+1.5000 [+0.0000, +2.0000]"]  # the mean of two seeds
        content = as_json([section])["questions"][0]["systems"]["sasrec+nce"]
        assert content["gaps"]["difference"]["HR@1"]["value"] == pytest.approx(3 / 4)
        assert len(content["skip_measures"]) == 2
        assert content["target_groups"]["new"]["HR@1"]["value"] == 1 / 2

    def test_targets_without_a_stratum_are_left_out(self, tmp_path: Path) -> None:
        file = measured_skips(tmp_path / "a.json", "caser", [1, 50, 1, 50], target_stratum=[0, 0, None, None])
        (asked,) = read_results([file]).values()
        assert skip_gaps(asked)["caser"].matched["HR@1"].value == 1.0
        for strata in ([None] * 4, [0, 1, 0, 1]):
            file = measured_skips(tmp_path / "b.json", "caser", [1, 50, 1, 50], target_stratum=strata)
            (asked,) = read_results([file]).values()
            assert skip_gaps(asked) == {}

    def test_results_of_older_versions_have_none(self, tmp_path: Path) -> None:
        (section,) = measure([result(tmp_path / "a.json", "caser", [1, 50, 1, 50])], 100)
        assert not any(table.title.startswith(("Groups", "Skip")) for table in section.tables)


class TestCommand:
    def test_the_command_prints_and_writes(self, files: list[Path], tmp_path: Path, capsys: Any) -> None:
        assert main(["compare", *map(str, files), "--html", str(tmp_path / "page.html")]) == 0
        assert "gru4rec+nce" in capsys.readouterr().out
        assert (tmp_path / "page.html").is_file()
        assert main(["compare", *map(str, files), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["questions"]

    def test_a_wrong_file_gives_one_line(self, tmp_path: Path, capsys: Any) -> None:
        assert main(["compare", str(tmp_path / "nothing.json")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"dimension": 8, "seed": 1}}, "with dimension=8, an earlier result has dimension=64"),
        ({"protocol": "sampled", "evaluation_seed": 7}, r"sampled tracks of --seed 7"),
    ],
)
def test_what_cannot_be_put_together_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Other options under the same name, and other tracks drawn to rank a target among."""
    sampled = {"protocol": "sampled", "evaluation_seed": 0} if "protocol" in change else {}
    first = result(tmp_path / "a", "sasrec", [1, 2, 900], 0, **sampled, options={"dimension": 64, "seed": 0})
    second = result(tmp_path / "b", "sasrec", [1, 2, 900], 1, **sampled | {"options": {"seed": 1}} | change)
    with pytest.raises(InputError, match=message):
        read_results([first, second])
    assert len(read_results([first])) == len(read_results([second])) == 1


def test_the_order_of_keys_tells_nothing(tmp_path: Path) -> None:
    first = result(tmp_path / "a", "sasrec", [1, 2, 900])
    second = result(tmp_path / "b", "markov", [1, 900, 2])
    second.write_text(json.dumps(json.loads(second.read_text()), sort_keys=True))
    assert len(read_results([first, second])) == 1
