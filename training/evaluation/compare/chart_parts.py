"""Parts that the charts of a comparison share: the fields of a row of data, and what a system's name tells."""

from typing import Final

from segue.ranking_metrics import Estimate
from training.evaluation.compare import tables

BASELINES: Final = ("ngram", "vmis-knn", "markov", "popularity")


def family_of(system: str) -> str:
    """The model that a system's name begins with, "other" for an unknown one."""
    return next((name for name in (*tables.FAMILIES, "hybrid", *BASELINES) if system.startswith(name)), "other")


def has_feedback(system: str) -> bool:
    """Whether the system was trained with skips as negative feedback."""
    return "+nce" in system or system.endswith(("-bl", "-nr"))


def system_fields(system: str) -> dict[str, str]:
    """The fields of a row that the name of a system tells."""
    return {"system": system, "model": family_of(system), "feedback": "with" if has_feedback(system) else "without"}


def value_fields(estimate: Estimate) -> dict[str, float]:
    """The fields of a row that hold an estimate."""
    return {"value": round(estimate.value, 5), "low": round(estimate.low, 5), "high": round(estimate.high, 5)}


def cell(estimate: Estimate, sign: str = "") -> str:
    """A value with its interval, as the tables of charts show it."""
    return f"{estimate.value:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"
