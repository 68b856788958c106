"""Steps `release-*`: a trained release enlarged to a catalogue's size, once without an index and once with the CPU's.

Without an index, a service on a GPU searches the flat index in half precision; the CPU's is `ivf-pq4`, the fastest kind
there at these sizes.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.facts import ROOT
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.step_errors import StepFailed

CPU_KIND: Final = "ivf-pq4"


def folders(work: Path, tracks: int) -> tuple[Path, Path]:
    """The release without an index, and the one with the CPU's."""
    return work / f"release-{tracks}", work / f"release-{tracks}-{CPU_KIND}"


def measure(sizes: Sizes, folder: Path, number: int) -> dict[str, Any]:
    """Train, enlarge and index; what is there already is not made again."""
    from benchmarks.serving.enlarge import enlarge
    from segue.release import open_release

    tracks, recall = sizes.catalogues[number], sizes.recalls[number]
    plain, indexed = folders(folder, tracks)
    taken: dict[str, float] = {}
    began = time.perf_counter()
    trained = _trained(sizes, folder)
    taken["train_s"] = round(time.perf_counter() - began, 1)
    if not plain.is_dir():
        began = time.perf_counter()
        enlarge(open_release(trained), tracks, plain, mapped=False)
        taken["enlarge_s"] = round(time.perf_counter() - began, 1)
    if not (indexed / "index.faiss").is_file():
        shutil.rmtree(indexed, ignore_errors=True)
        shutil.copytree(plain, indexed, copy_function=_linked)
        began = time.perf_counter()
        _segue("index", indexed, "--kind", CPU_KIND, "--recall", recall)
        taken["index_s"] = round(time.perf_counter() - began, 1)
    facts = json.loads((indexed / "index.json").read_text())
    facts.pop("tried", None)
    return {"tracks": tracks, "taken": taken, "cpu_index": facts}


def _trained(sizes: Sizes, folder: Path) -> Path:
    """A small trained release, as benchmarks/serving/run.py has it but for fewer epochs."""
    dataset, trained = folder / "dataset", folder / "trained"
    if not trained.is_dir():
        tracks, sessions, epochs = (1000, 300, 1) if sizes.dry_run else (2000, 6000, 6)
        _segue("simulate", "--tracks", tracks, "--sessions", sessions, "--out", dataset, "--overwrite")
        settings = [f"dimension={sizes.dimension}", "heads=8", "norm=pre", "init_scale=0.1", f"epochs={epochs}"]
        _segue(
            "train",
            dataset,
            "--model",
            "sasrec",
            "--recipe",
            "demo",
            *(f"--set={s}" for s in settings),
            "--out",
            trained,
        )
    return trained


def _linked(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _segue(*arguments: object) -> None:
    try:
        subprocess.run([sys.executable, "-m", "segue", *map(str, arguments)], check=True, cwd=ROOT)
    except subprocess.CalledProcessError as error:
        raise StepFailed(f"segue {arguments[0]} ended with {error.returncode}: see its output above") from None
