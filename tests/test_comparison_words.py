"""The sentences of a comparison, for any number of systems and versions, and the measures that they rest on."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("altair")
pytest.importorskip("jinja2")

from segue.ranking_metrics import Estimate
from tests.comparison_results import measured_of, result
from training.evaluation.compare import narrative as words
from training.evaluation.compare.charts import systems_chart
from training.evaluation.compare.line_charts import has_feedback
from training.evaluation.compare.report import measure
from training.evaluation.compare.results import EvaluationResults, Question, SystemResults
from training.evaluation.compare.statistics import Difference, Lead, Pair
from training.evaluation.compare.tables import ComparisonData


def compared(
    hit_rates: dict[str, float],
    level: list[str] | None = None,
    changes: list[tuple[str, str, float, float]] | None = None,
    at_rank_1: dict[str, float] | None = None,
) -> ComparisonData:
    """Results with intervals of +-0.01 around these values of HR@10 and HR@1 of played targets.

    `level` are the systems that tests do not separate from the first one; None: nothing was tested. A change is
    (system, metric, difference by feedback, corrected p).
    """
    nothing = np.zeros(0)
    asked = EvaluationResults(
        Question("mssd", "f", "last-play", "test", "full"),
        nothing.astype(bool), nothing.astype(int), nothing.astype(int), nothing,
        systems={system: SystemResults(ranks={0: nothing}) for system in hit_rates},
    )  # fmt: skip
    estimates = {(system, "played", "HR@10"): around(value) for system, value in hit_rates.items()}
    estimates |= {(system, "played", "HR@1"): around(value) for system, value in (at_rank_1 or {}).items()}
    first = max(hit_rates, key=lambda system: hit_rates[system])
    tests = {system: 0.2 if system in (level or []) else 0.01 for system in hit_rates if system != first}
    differences = []
    for system, metric, value, p in changes or []:
        pair = Pair(system, system.replace("+nce", "").partition("-")[0], "feedback")
        group, before = ("played", hit_rates[pair.against]) if metric == "HR@10" else ("skipped", 0.5)
        differences.append(Difference(pair, group, metric, before, around(value), p, p))
    lead = None if level is None else Lead("played", first, tests)
    return ComparisonData(asked, estimates, differences, lead=lead)


def around(value: float) -> Estimate:
    return Estimate(value, value - 0.01, value + 0.01)


FINDS = (
    "finds the next track among its first ten in 70 of 100 sessions whose next track was played (HR@10 0.700, 95 % "
    "interval 0.690 to 0.710)"
)
FIRST = "(HR@10 on played targets 0.700, 95 % interval 0.690 to 0.710)"
TWELVE = {f"s{number}": 0.7 - number / 1000 for number in range(12)}
BEST_CASES: list[tuple[dict[str, float], list[str] | None, str]] = [
    (
        {"sasrec": 0.7},
        [],
        f"One result, so there is nothing to compare: sasrec {FINDS}. Add the results of other systems on the "
        "same dataset, split, targets and policy for repeated tracks.",
    ),
    (
        {"sasrec": 0.7, "caser": 0.6},
        [],
        f"sasrec is better than caser: it {FINDS}, and a paired test separates the two.",
    ),
    (
        {"sasrec": 0.7, "caser": 0.6},
        ["caser"],
        f"No single best: a paired test does not separate sasrec {FIRST} from caser.",
    ),
    (
        {"sasrec": 0.7, "caser": 0.6, "markov": 0.5},
        [],
        f"sasrec is the best of three systems: it {FINDS}, and paired tests separate it from every other system.",
    ),
    (
        {"sasrec": 0.7, "caser": 0.6, "markov": 0.5},
        ["caser"],
        f"No single best: paired tests do not separate sasrec {FIRST} from one of the two other systems: caser.",
    ),
    (
        {"sasrec": 0.7, "caser": 0.6, "markov": 0.5},
        ["caser", "markov"],
        f"No single best: paired tests do not separate sasrec {FIRST} from any other system: caser and markov.",
    ),
    (
        TWELVE,
        [f"s{number}" for number in range(1, 10)],
        f"No single best: paired tests do not separate s0 {FIRST} from 9 of the 11 other systems: s1, s2, s3, "
        "s4, s5, s6 and 3 more.",
    ),
    (
        {"sasrec": 0.7, "caser": 0.69, "markov": 0.5},
        None,
        f"No single best: the confidence interval of sasrec {FIRST} overlaps with that of one of the two other "
        "systems: caser.",
    ),
    (
        {"sasrec": 0.7, "caser": 0.6, "markov": 0.5},
        None,
        f"sasrec is the best of three systems: it {FINDS}, and no other confidence interval overlaps with its own.",
    ),
]
PLAIN = {"sasrec": 0.6, "gru4rec": 0.6, "caser": 0.6, "wrmf": 0.6}
FEEDBACK_CASES: list[tuple[list[tuple[str, str, float, float]], dict[str, float], str]] = [
    ([], {}, "Cannot estimate the effect of skip feedback: add results with and without `--no-nce`."),
    (
        [("sasrec+nce", "HR@10", 0.048, 0.01), ("sasrec+nce", "MRR@10", -0.1, 0.01)],
        {"sasrec": 0.441, "sasrec+nce": 0.405},
        "With skip feedback, sasrec finds 4.8 points more played targets in its first ten (0.648 against "
        "0.600) and 3.6 points fewer at rank 1 (0.405 against 0.441). It ranks skipped targets lower (MRR@10 "
        "0.400 against 0.500).",
    ),
    (
        [("sasrec+nce", "HR@10", -0.01, 0.01), ("sasrec+nce", "MRR@10", 0.1, 0.01)],
        {"sasrec": 0.44, "sasrec+nce": 0.45},
        "With skip feedback, sasrec finds 1.0 point fewer played targets in its first ten (0.590 against "
        "0.600). It ranks skipped targets higher (MRR@10 0.600 against 0.500).",
    ),
    (
        [("sasrec+nce", "HR@10", 0.002, 0.5), ("sasrec+nce", "MRR@10", 0.1, 0.5)],
        {"sasrec": 0.44, "sasrec+nce": 0.4},
        "With skip feedback, sasrec finds neither significantly more nor fewer played targets in its first "
        "ten (0.602 against 0.600), but 4.0 points fewer at rank 1 (0.400 against 0.440). It ranks skipped "
        "targets neither significantly lower nor higher (MRR@10 0.600 against 0.500).",
    ),
    (
        [("wrmf-nr", "HR@10", 0.05, 0.01)],
        {},
        "With skip feedback, wrmf-nr finds 5.0 points more played targets in its first ten (0.650 against 0.600).",
    ),
    (
        [(f"{name}+nce", metric, 0.0, 0.9) for name in ("sasrec", "gru4rec") for metric in ("HR@10", "MRR@10")],
        {},
        "With skip feedback, none of the two systems finds significantly more played targets in its first "
        "ten. None of the two systems ranks skipped targets significantly lower.",
    ),
    (
        [
            *[("sasrec+nce", "HR@10", 0.02, 0.01), ("gru4rec+nce", "HR@10", -0.02, 0.01)],
            *[("sasrec+nce", "MRR@10", -0.1, 0.01), ("gru4rec+nce", "MRR@10", 0.1, 0.01)],
        ],
        {"sasrec": 0.44, "sasrec+nce": 0.4},
        "With skip feedback, one of the two systems finds significantly more played targets in its first ten "
        "(2.0 points: sasrec+nce, 0.620 against 0.600), and one finds fewer. Cost at rank 1: sasrec+nce "
        "finds 4.0 points fewer (0.400 against 0.440). One of the two systems ranks skipped targets "
        "significantly lower, and one ranks them higher.",
    ),
    (
        [
            *[("sasrec+nce", "HR@10", 0.02, 0.01), ("gru4rec+nce", "HR@10", 0.03, 0.01)],
            *[("sasrec+nce", "MRR@10", -0.1, 0.01), ("gru4rec+nce", "MRR@10", -0.1, 0.01)],
        ],
        {},
        "With skip feedback, both systems find significantly more played targets in their first ten (at most "
        "3.0 points: gru4rec+nce, 0.630 against 0.600). Both systems rank skipped targets significantly "
        "lower.",
    ),
    (
        [("sasrec+nce", "HR@10", 0.02, 0.01), ("gru4rec+nce", "HR@10", 0.03, 0.01), ("caser+nce", "HR@10", 0.01, 0.01)],
        {"sasrec": 0.44, "sasrec+nce": 0.4, "caser": 0.44, "caser+nce": 0.41},
        "With skip feedback, all three systems find significantly more played targets in their first ten (at "
        "most 3.0 points: gru4rec+nce, 0.630 against 0.600). Cost at rank 1: sasrec+nce finds 4.0 points "
        "fewer (0.400 against 0.440) and caser+nce finds 3.0 points fewer (0.410 against 0.440).",
    ),
    (
        [
            *[("sasrec+nce", "HR@10", 0.02, 0.01), ("gru4rec+nce", "HR@10", 0.03, 0.01)],
            *[("caser+nce", "HR@10", -0.03, 0.01), ("wrmf-bl", "HR@10", -0.03, 0.01)],
        ],
        {},
        "With skip feedback, two of the four systems find significantly more played targets in their first "
        "ten (at most 3.0 points: gru4rec+nce, 0.630 against 0.600), and two find fewer.",
    ),
]


class TestWords:
    @pytest.mark.parametrize(("hit_rates", "level", "expected"), BEST_CASES)
    def test_a_best_system_is_named_only_if_it_is_separated_from_every_other(
        self, hit_rates: dict[str, float], level: list[str] | None, expected: str
    ) -> None:
        assert words.answer(compared(hit_rates, level))[0] == expected

    @pytest.mark.parametrize(("changes", "at_rank_1", "expected"), FEEDBACK_CASES)
    def test_what_feedback_changes_is_said_for_any_number_of_systems(
        self, changes: list[tuple[str, str, float, float]], at_rank_1: dict[str, float], expected: str
    ) -> None:
        assert words.answer(compared(PLAIN, [], changes, at_rank_1))[1] == expected

    def test_the_tests_of_the_best_are_paired_over_played_targets(self, tmp_path: Path) -> None:
        """Intervals overlap, but the first system wins in every session in which the two differ."""
        ranks = [1, 1, 50, 1] * 50
        better = np.array(ranks)
        better[[number for number in range(200) if number % 20 == 2]] = 1  # ten played targets more
        measured = measured_of(tmp_path, {"caser": ranks, "sasrec": better.tolist(), "gru4rec": [1, 1, 50, 1] * 50})
        assert measured.hit_rate("caser").high > measured.hit_rate("sasrec").low
        assert measured.lead is not None
        assert (measured.lead.group, measured.lead.system, measured.lead.level) == ("played", "sasrec", [])
        assert words.answer(measured)[0].startswith("sasrec is the best of three systems: it finds")
        same = measured_of(tmp_path, {"caser": ranks, "sasrec": [*ranks[2:], *ranks[:2]]})
        assert words.answer(same)[0].startswith("No single best: a paired test does not separate caser (")

    def test_sentence_and_tables_sort_by_played_targets(self, tmp_path: Path) -> None:
        played = [1, 50, 1, 50, 1, 50, 50, 50] * 20  # 60 of 80 played targets in the first ten, no skipped one
        skipped = [50, 1, 50, 1, 50, 1, 50, 1] * 20  # the other way round
        files = [result(tmp_path / f"{name}.json", name, np.array(ranks)) for name, ranks in
                 {"sasrec": skipped, "gru4rec": played, "caser": [1, 1] * 80}.items()]  # fmt: skip
        (section,) = measure(files, 200)
        measured = words.chosen(section.by_protocol)
        assert words.best_system(measured) == "caser"
        assert measured.ranked == ["caser", "gru4rec", "sasrec"]
        table = next(table for table in section.tables if table.title.startswith("Every system"))
        assert [row[0] for row in table.rows] == measured.ranked
        assert table.columns[2] == "HR@10 played"
        assert [row[0] for row in systems_chart(section.by_protocol).table.rows] == measured.ranked

    def test_without_outcomes_sentences_speak_of_all_targets(self, tmp_path: Path) -> None:
        unknown = {"target_known": [False] * 200, "target_skipped": [False] * 200}
        ranks = {"sasrec": [1, 50] * 100, "sasrec+nce": [1, 5] * 100}
        measured = measured_of(tmp_path, ranks, **unknown)
        first, second = words.answer(measured)
        assert "in 100 of 100 sessions (HR@10 1.000" in first
        assert second == (
            "With skip feedback, sasrec finds 50.0 points more targets in its first ten (1.000 against 0.500)."
        )

    def test_the_example_is_a_session_of_the_data(self, tmp_path: Path) -> None:
        # Session 3 is the first whose target was played (every second one is skipped) and stood between 2 and 10.
        changed = {"session_length": [12] * 8, "session_skip_rate": [0.25] * 8}
        measured = measured_of(tmp_path, {"sasrec": [1, 4, 7, 1, 50, 1, 2, 1]}, **changed)
        shown, counted = words.example(measured)
        assert shown.startswith(
            "Take session 3 of 8. The system sasrec saw its 12 plays before the target, 3 of them skipped"
        )
        assert "which the listener played, has rank 7: a hit at 10, a miss at 1." in shown
        assert counted.endswith("HR@10 = 3 / 4 = 0.750.")

    def test_every_system_is_described(self) -> None:
        from training.evaluation.compare import tables as paper

        for system in [*paper.SYSTEMS, "ngram", "hybrid", "hybrid-caser+nce", "markov", "sasrec+nce+published-pairing"]:
            said = words.describe_system(system)
            assert "a system of your own" not in said
            assert (";" in said.removeprefix(words.MODELS.get(system, ""))) == has_feedback(
                system
            ) or system in words.MODELS
