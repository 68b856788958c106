"""The log of a training run, in the folder `OUT.run` next to the release `OUT`.

The log is not part of the release, because the name of a release contains a hash of its content.

    run.json        model, options, dataset, and the time and machine of every start of the training
    metrics.jsonl   one JSON object per epoch
    curves.svg      a chart of losses and validation metrics, for light and dark mode

A training run that resumes from a checkpoint continues the log. A training run from scratch replaces the log. Epoch
metrics can also be written for TensorBoard, which is an optional dependency: `pip install '.[tensorboard]'`.
"""

import contextlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from training import vega

if TYPE_CHECKING:
    from training.trainer import Reporter

Line = Mapping[str, float]

_LOSSES: Final = ("loss", "nll", "nce")
_SCORES: Final = ("HR@10", "MRR@10")
_COLOURS: Final = ("#0f766e", "#c2410c", "#6d28d9")
_CSS: Final = "svg { color-scheme: light dark; background: Canvas }"


def curves(history: Sequence[Line]) -> str:
    """Return an SVG chart of losses and validation metrics by epoch. Values that are not finite are omitted.

    `history` contains one mapping per epoch, with the keys of `Reporter.epoch`.
    """
    spec = {
        "$schema": vega.SCHEMA,
        "description": f"Loss and validation over {len(history)} epochs",
        "hconcat": [
            _panel(history, "Loss by epoch", _LOSSES, from_zero=False),
            _panel(history, "Validation by epoch", _SCORES, from_zero=True),
        ],
        "resolve": {"scale": {"color": "independent"}},
        "config": {
            "background": "transparent",
            "axis": {"labelColor": "CanvasText", "titleColor": "CanvasText", "gridColor": "#8884"},
            "legend": {"title": None, "labelColor": "CanvasText", "orient": "top"},
            "title": {"color": "CanvasText", "anchor": "start"},
            "view": {"stroke": None},
        },
    }
    return f"{vega.svg(spec, _CSS)}\n"


def _panel(history: Sequence[Line], title: str, names: Sequence[str], *, from_zero: bool) -> dict[str, Any]:
    values = [
        {
            "epoch": line["epoch"],
            "name": name,
            "value": line[name],
            "says": f"{name} {line[name]:.4f}, epoch {line['epoch']:g}",
        }
        for name in names
        for line in history
        if math.isfinite(line[name])
    ]
    epochs = [line["epoch"] for line in history]
    return {
        "title": title,
        "width": 300,
        "height": 220,
        "data": {"values": values},
        "encoding": {
            "x": {
                "field": "epoch",
                "type": "quantitative",
                "axis": {"values": list(epochs[:: max(1, len(epochs) // 8)]), "format": "d"},
                "scale": {"zero": False},
            },
            "y": {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": from_zero}},
            "color": {"field": "name", "type": "nominal", "scale": {"domain": names, "range": _COLOURS[: len(names)]}},
        },
        "layer": [
            {"mark": {"type": "line", "aria": False}},
            {"mark": {"type": "point", "filled": True, "opacity": 1}, "encoding": {"description": {"field": "says"}}},
        ],
    }


_GROUPS: Final = {"loss": "loss", "nll": "loss", "nce": "loss", "HR@10": "validation", "MRR@10": "validation"}


class TensorBoard:
    """Writes the metrics of every epoch for TensorBoard, in the groups `loss`, `validation` and `speed`.

    The step of a scalar is the number of the epoch, counted from 1.
    """

    def __init__(self, folder: Path) -> None:
        """Open a TensorBoard run in `folder`.

        Use one folder per training run. Pass their parent folder to `tensorboard --logdir`.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Self:
        """Return the reporter itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the TensorBoard event file."""
        self._writer.close()

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:
        """Do nothing: metrics are written only after an epoch."""

    def epoch(self, line: dict[str, float]) -> None:
        """Write the metrics of a finished epoch as TensorBoard scalars."""
        for name, value in line.items():
            if name != "epoch":
                group = _GROUPS.get(name, "speed")
                self._writer.add_scalar(f"{group}/{name.replace('@', '_at_')}", value, int(line["epoch"]))
        self._writer.flush()


FACTS: Final = "run.json"
METRICS: Final = "metrics.jsonl"
CURVES: Final = "curves.svg"
_PACKAGES: Final = ("segue", "torch", "numpy", "polars", "onnx", "onnxruntime")


class MultiReporter:
    """Forwards training progress to several reporters."""

    def __init__(self, *reporters: "Reporter") -> None:
        self._reporters = reporters

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:
        """Forward a finished step to all reporters."""
        for reporter in self._reporters:
            reporter.step(epoch, sessions_done, sessions, terms)

    def epoch(self, line: dict[str, float]) -> None:
        """Forward a finished epoch to all reporters."""
        for reporter in self._reporters:
            reporter.epoch(line)


class RunFolder:
    """Writes the log of one training run: run.json, metrics.jsonl and curves.svg."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], start: Mapping[str, Any], *, resumed: bool) -> None:
        """Create the folder and write run.json.

        `facts` is the content of run.json without the starts. `start` describes the current start, for example with
        `environment()`. If `resumed` is true, keep the earlier starts and epochs; otherwise delete the old log.
        """
        self._folder = folder
        self._lines: list[dict[str, float]] = self._read_metrics() if resumed else []
        starts = self._read_facts().get("starts", []) if resumed else []
        self._facts = {**facts, "starts": [*starts, dict(start)]}
        folder.mkdir(parents=True, exist_ok=True)
        if not resumed:
            for name in (METRICS, CURVES):
                (folder / name).unlink(missing_ok=True)
        self._write(FACTS, json.dumps(self._facts, indent=2) + "\n")

    def step(self, epoch: int, sessions_done: int, sessions: int, terms: dict[str, float]) -> None:
        """Do nothing: metrics are written only after an epoch."""

    def epoch(self, line: dict[str, float]) -> None:
        """Write the metrics of a finished epoch. An epoch that is repeated after a crash replaces its earlier line."""
        self._keep([earlier for earlier in self._lines if earlier["epoch"] < line["epoch"]] + [line])

    def finish(self, release: str, history: Sequence[dict[str, float]]) -> None:
        """Write the name of the release and the end time to run.json.

        `history` contains the metrics of all epochs. A crash can lose the last line of metrics.jsonl, so rewrite the
        file if it differs from `history`.
        """
        if list(history) != self._lines:
            self._keep(list(history))
        self._facts |= {"release": release, "finished": _now()}
        self._write(FACTS, json.dumps(self._facts, indent=2) + "\n")

    def _keep(self, lines: list[dict[str, float]]) -> None:
        self._lines = lines
        self._write(METRICS, "".join(f"{json.dumps(_finite(line))}\n" for line in lines))
        self._write(CURVES, curves(lines))

    def _write(self, name: str, content: str) -> None:
        unfinished = self._folder / f"{name}.unfinished"
        unfinished.write_text(content, encoding="utf-8")
        unfinished.rename(self._folder / name)

    def _read_metrics(self) -> list[dict[str, float]]:
        """Return the epochs in metrics.jsonl, or an empty list if the file is unreadable. `finish` writes it again."""
        with contextlib.suppress(OSError, ValueError):
            lines = [json.loads(line) for line in (self._folder / METRICS).read_text(encoding="utf-8").splitlines()]
            return [{name: math.nan if value is None else value for name, value in line.items()} for line in lines]
        return []

    def _read_facts(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self._folder / FACTS).read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        return {}


def environment() -> dict[str, Any]:
    """Return the current time, the package versions and the hardware, for run.json.

    GPUs and the number of threads are included only if torch is imported.
    """
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "at": _now(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
            if torch is not None and cuda
            else [],
        },
        "threads": None if torch is None else torch.get_num_threads(),
        "commit": source_commit(),
    }


def source_commit() -> str | None:
    """Return the git commit of the source code, or None if the package was installed from a wheel."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _finite(line: Mapping[str, float]) -> dict[str, float | None]:
    """Replace NaN and infinity by None, because JSON has no such numbers."""
    return {name: value if math.isfinite(value) else None for name, value in line.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
