"""One table of all systems: hit rates with both policies for repeats, and the skip measures.

    python -m benchmarks.skip_table RESULT... --control PLAY_HEAD_JSON --out FILE

RESULT files are written by `segue evaluate --output`, for one dataset: the last-play split with --repeat allow and
never, and optionally the split new-sessions with --repeat allow for the AUC. PLAY_HEAD_JSON is the output of
`benchmarks.play_head` on the last-play split. With --add-to, the systems of an earlier FILE of the same dataset stay as
they are, and those that it does not have are added. The command prints the table in Markdown and writes all values
with their 95 % intervals to FILE as [value, low, high], without the ranks of single sessions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeAlias

import click

from segue.ranking_metrics import Estimate
from training.evaluation.compare.results import EvaluationResults, read_results
from training.evaluation.compare.statistics import estimates, group_estimates, skip_gaps
from training.evaluation.compare.tables import mean_estimate

Interval: TypeAlias = list[float]  # value, lower and upper limit

METRICS: Final = ("HR@1", "HR@10")
RESPONSES: Final = ("after_skip", "after_play", "skip_minus_play")
CAUTION: Final = 1.0
_NO_GAPS: Final[dict[str, Any]] = {"raw": {}, "matched": {}, "difference": {}, "against": None}
COLUMNS: Final = (
    "system",
    "HR@1, HR@10",
    "`never`",
    "HR@10, played",
    "HR@10, unknown pair",
    "raw gap, HR@10",
    "matched gap, HR@10",
    "paired difference",
    "effect of caution 1, HR@10",
    "AUC in a session",
    "similar tracks after a skip, pp",
    "skip - play, pp",
)


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--control", type=click.Path(path_type=Path, exists=True), help="Output of benchmarks.play_head.")
@click.option("--add-to", "earlier", type=click.Path(path_type=Path, exists=True), help="A table to add systems to.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(results: tuple[Path, ...], control: Path | None, earlier: Path | None, out: Path) -> None:
    """Write and print the table of all systems."""
    compared = read_results(results)
    caution = {} if control is None else effects(json.loads(control.read_text(encoding="utf-8")))
    questions = [_question(asked) for asked in compared.values()]
    found: dict[str, Any] = {
        "fingerprint": next(iter(compared)).fingerprint,
        "questions": questions,
        "caution": caution,
    }
    if earlier is not None:
        _add(json.loads(earlier.read_text(encoding="utf-8")), found)
    lines = json.dumps(found, separators=(",", ":")).replace('"systems":{', '"systems":{\n').replace('}},"', '}},\n"')
    out.write_text(lines + "\n", encoding="utf-8")
    print(table(found["questions"], found["caution"]))


def _add(earlier: dict[str, Any], found: dict[str, Any]) -> None:
    """Put an earlier table into `found`, with the systems of `found` that it does not have."""
    if earlier["fingerprint"] != found["fingerprint"]:
        raise click.UsageError("--add-to: the table is of another dataset")
    asked = ("source", "split", "part", "protocol", "repeat", "targets")
    new = {tuple(one[key] for key in asked): one["systems"] for one in found["questions"]}
    for one in earlier["questions"]:
        one["systems"] = new.pop(tuple(one[key] for key in asked), {}) | one["systems"]
    if new:
        raise click.UsageError(f"--add-to: the table does not have {', '.join(map(str, new))}")
    found["questions"] = earlier["questions"]
    found["caution"] |= earlier["caution"]


def effects(control: Mapping[str, Any]) -> dict[str, Any]:
    """Return by system what CAUTION changes: hit rates, and the matched gap minus that of shuffled probabilities."""
    found = {}
    for release in control["releases"]:
        line = next(line for line in release["cautions"] if line["caution"] == CAUTION)
        system = release["release"].rsplit("-", 1)[0]  # SYSTEM-SEED, as in `segue reproduce`
        changes = {key: line[key] for key in ("HR@1 change", "HR@10 change", "HR@10 played change")}
        changes |= {"effect HR@1": line["effect"][0], "effect HR@10": line["effect"][1]}
        found[system] = {key: _json(Estimate(**estimate)) for key, estimate in changes.items()}
    return found


def _question(asked: EvaluationResults) -> dict[str, Any]:
    """Return the values of one split and policy."""
    whole, groups, gaps = estimates(asked, METRICS), group_estimates(asked), skip_gaps(asked)
    systems: dict[str, Any] = {}
    for system, answered in asked.systems.items():
        measured = answered.skip_measures
        responses = [of.get("responsiveness") or {} for of in measured]
        systems[system] = {
            "seeds": sorted(answered.ranks),
            "groups": _nested({(g, m): e for (s, g, m), e in whole.items() if s == system}),
            "target_groups": _nested({(g, m): e for (s, g, m), e in groups.items() if s == system and m in METRICS}),
            "gaps": _gaps(gaps.get(system)),
            "pairwise_auc": _json(mean_estimate([of.get("pairwise_auc") for of in measured])),
            "responsiveness": {k: _json(mean_estimate([of.get(k) for of in responses])) for k in RESPONSES},
        }
    question = asked.question
    return {
        **{key: getattr(question, key) for key in ("source", "split", "part", "protocol", "repeat")},
        "targets": len(asked.target_skipped),
        "systems": systems,
    }


def _nested(values: Mapping[tuple[str, str], Estimate]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for (group, metric), estimate in values.items():
        found.setdefault(group, {})[metric] = _json(estimate)
    return found


def _gaps(gaps: Any) -> dict[str, Any] | None:
    if gaps is None:
        return None
    kinds = {kind: getattr(gaps, kind) for kind in ("raw", "matched", "difference")}
    return {"against": gaps.against} | {
        kind: {metric: _json(of[metric]) for metric in METRICS if metric in of} for kind, of in kinds.items()
    }


def _json(estimate: Estimate | None) -> Interval | None:
    return None if estimate is None else [round(value, 5) for value in asdict(estimate).values()]


def table_of(path: Path) -> str:
    """Return the table of a file that this command wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return table(content["questions"], content["caution"])


def table(questions: Sequence[Mapping[str, Any]], caution: Mapping[str, Any]) -> str:
    """Return the table in Markdown: the last-play split, with the AUC of the split new-sessions."""
    asked = {(of["split"], of["repeat"]): of["systems"] for of in questions}
    allow, never = asked["last-play", "allow"], asked.get(("last-play", "never"), {})
    unseen = asked.get(("new-sessions", "allow"), {})
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    for system in sorted(allow, key=lambda name: -allow[name]["groups"]["all"]["HR@10"][0]):
        of = allow[system]
        gaps, response = of["gaps"] or _NO_GAPS, of["responsiveness"]
        cells = [
            _hits(of),
            _hits(never.get(system)),
            _interval(of["groups"].get("played", {}).get("HR@10"), ""),
            _interval(of["target_groups"].get("pair_unseen", {}).get("HR@10"), ""),
            _interval(gaps["raw"].get("HR@10")),
            _interval(gaps["matched"].get("HR@10")),
            f"{_interval(gaps['difference'].get('HR@10'))} to {gaps['against']}" if gaps["against"] else "",
            _interval(caution.get(system, {}).get("effect HR@10")),
            _interval(unseen.get(system, {}).get("pairwise_auc"), ""),
            _interval(response["after_skip"], "+", 2, 100),
            _interval(response["skip_minus_play"], "+", 2, 100),
        ]
        lines.append(_line([system, *cells]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _hits(of: Mapping[str, Any] | None) -> str:
    return "" if of is None else ", ".join(f"{of['groups']['all'][metric][0]:.3f}" for metric in METRICS)


def _interval(estimate: Interval | None, sign: str = "+", digits: int = 3, scale: float = 1.0) -> str:
    if estimate is None:
        return ""
    value, low, high = (f"{scale * number:{sign}.{digits}f}" for number in estimate)
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
