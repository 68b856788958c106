"""What the figures are compared with, and whether each goal is met."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

LEAST_SHARE: Final = 0.5  # of the copy bandwidth, by flat search of the small catalogue
FROM_BATCH: Final = 64
MOST_TRAINING_S: Final = 600
LEAST_RATIO: Final = 2.0  # requests a second of the service, large catalogue, to those with the CPU index
_RECALL_NOISE: Final = 0.005

Results = Mapping[str, Mapping[str, Any]]  # content of the result files by step


@dataclass(frozen=True)
class Goal:
    """A goal beside what was found; `met` is None where there is no figure."""

    text: str
    found: str
    met: bool | None

    def __str__(self) -> str:
        """One line."""
        verdict = {True: "met", False: "missed", None: "not measured"}[self.met]
        return f"goal {verdict}: {self.text}" + (f"; found {self.found}" if self.found else "")


def goals(results: Results) -> list[Goal]:
    """Every goal."""
    return [_bandwidth(_result(results, "index-small")), _training(_result(results, "training-run")), _service(results)]


def lines(results: Results, *, dry_run: bool) -> list[str]:
    """The goals as lines for the terminal."""
    if dry_run:
        return ["goals are not judged: a dry run measures no GPU"]
    return [str(goal) for goal in goals(results)]


def _result(results: Results, step: str) -> Any:
    return results.get(step, {}).get("result")


def _bandwidth(result: Any) -> Goal:
    text = f"flat search in half precision, batches of {FROM_BATCH} and more, at {LEAST_SHARE} of the copy bandwidth"
    rows = [row for row in result["kinds"]["flat"]["batches"] if row["batch"] >= FROM_BATCH] if result else []
    if not rows:
        return Goal(text, "", None)
    worst = min(rows, key=lambda row: float(row["moved_share"]))
    found = f"{worst['moved_share']:.2f} at batches of {worst['batch']} ({worst['read_share']:.2f} by the index alone)"
    return Goal(text, found, worst["moved_share"] >= LEAST_SHARE)


def _training(result: Any) -> Goal:
    text = f"20 epochs with the skip loss at the size of MSSD in {MOST_TRAINING_S} s"
    if not result or result["whole_s"] is None:
        return Goal(text, "", None)
    seconds = result["whole_s"] / result["epochs"] * 20
    how = "measured" if result["epochs_done"] == 20 else f"extrapolated from {result['epochs_done']} epochs"
    found = f"{seconds:.0f} s, {how}, batches of {result['batch_size']}, {result['precision']}"
    return Goal(text, found, seconds <= MOST_TRAINING_S)


def _service(results: Results) -> Goal:
    text = f"the service at the large catalogue at {LEAST_RATIO:g} times the CPU index's requests/s, at equal recall"
    result = _result(results, "service-large")
    if not result:
        return Goal(text, "", None)
    recalls = result["gpu"]["recall_at_20"], result["cpu"]["recall_at_20"]
    found = f"{result['ratio']:.2f} times, recall@20 {recalls[0]:.3f} and {recalls[1]:.3f}"
    return Goal(text, found, result["ratio"] >= LEAST_RATIO and recalls[0] >= recalls[1] - _RECALL_NOISE)
