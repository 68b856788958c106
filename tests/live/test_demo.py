"""The demo, and what it shows: on planted sessions the skip loss tells played from skipped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_shows_the_skip_loss_at_work(tmp_path: Path) -> None:
    """HR@10: skipped targets lower, played targets higher than without the loss, by intervals that do not touch."""
    command = [sys.executable, "-m", "segue", "demo", "--folder", str(tmp_path), "--no-serve"]
    subprocess.run(command, check=True)
    [world] = tmp_path.iterdir()
    made = {path: path.stat().st_mtime_ns for path in world.rglob("*") if path.is_file()}

    def hr10(system: str, group: str) -> dict[str, float]:
        result = json.loads((world / f"{system}.evaluation.json").read_text())
        of: dict[str, float] = result["groups"][group]["HR@10"]
        return of

    assert hr10("sasrec", "skipped")["high"] < hr10("sasrec-no-nce", "skipped")["low"]
    assert hr10("sasrec", "played")["low"] > hr10("sasrec-no-nce", "played")["high"]

    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "training" not in again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*") if path.is_file()} == made
