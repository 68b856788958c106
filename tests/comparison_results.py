"""Result files as `segue evaluate --output` writes them, for tests of comparisons: small, and with a known answer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from training.evaluation.compare.tables import ComparisonData

SESSIONS = 400


def result(path: Path, system: str, ranks: Any, seed: int = 0, **changed: Any) -> Path:
    """A result file as `segue evaluate --output` writes it, with what a comparison reads."""
    rng = np.random.default_rng(0)
    count = len(ranks)
    content = {
        "system": system,
        "train_seed": seed,
        "dataset": {"source": "mssd", "fingerprint": "f" * 16},
        "split": "last-play",
        "part": "test",
        "protocol": "full",
        "training": {"seconds": 12.0, "peak_memory_bytes": 2**29},
        "unseen_targets": 0.0,
        "catalogue_coverage@20": 0.5,
        "ranks": [None if rank > 100 else float(rank) for rank in ranks],
        "target_skipped": (np.arange(count) % 2 == 1).tolist(),
        "target_plays": rng.integers(0, 50, count).tolist(),
        "session_length": rng.integers(5, 20, count).tolist(),
        "session_skip_rate": rng.random(count).round(2).tolist(),
    }
    path.write_text(json.dumps(content | changed))
    return path


def gaining(folder: Path) -> list[Path]:
    """Feedback helps the gru4rec in every fourth session, and does nothing to the sasrec."""
    rng = np.random.default_rng(1)
    found = []
    for protocol in ("full", "sampled"):
        for seed in (0, 1):
            ranks = rng.integers(1, 40, SESSIONS)
            better = np.where(np.arange(SESSIONS) % 4 == 0, 1, ranks)
            systems = {"sasrec": ranks, "sasrec+nce": ranks[::-1], "gru4rec": ranks, "gru4rec+nce": better}
            for system, given in systems.items():
                path = folder / f"{protocol}-{system}-{seed}.json"
                found.append(result(path, system, given, seed, protocol=protocol))
        found.append(result(folder / f"{protocol}-markov.json", "markov", ranks + 5, protocol=protocol))
    return found


def measured_of(folder: Path, systems: dict[str, list[int]], **changed: Any) -> "ComparisonData":
    """What is measured of these ranks; every second target is skipped."""
    from training.evaluation.compare.narrative import chosen
    from training.evaluation.compare.report import measure

    files = [result(folder / f"{name}.json", name, np.array(ranks), **changed) for name, ranks in systems.items()]
    (section,) = measure(files, 500)
    return chosen(section.by_protocol)
