"""The demo, and what it shows: on synthetic sessions the skip loss tells played from skipped."""

import json
import re
import signal
from pathlib import Path

import httpx
import pytest

pytest.importorskip("torch")

from tests.preloaded import COMMANDS, SEGUE, preloaded, segue


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "size", [("--tracks", 1000, "--sessions", 2000), pytest.param((), marks=pytest.mark.nightly, id="whole")]
)
def test_the_demo_shows_the_skip_loss_at_work(size: tuple[object, ...], tmp_path: Path) -> None:
    """HR@10: skipped targets lower than without the loss, by intervals that do not touch; played targets not lower."""
    command = ("demo", *size, "--folder", tmp_path, "--no-serve")
    segue(*command, timeout=1400)
    [world] = tmp_path.iterdir()
    made = {path: path.stat().st_mtime_ns for path in world.rglob("*") if path.is_file()}

    def hr10(system: str, group: str) -> dict[str, float]:
        result = json.loads((world / f"{system}.evaluation.json").read_text())
        of: dict[str, float] = result["groups"][group]["HR@10"]
        return of

    assert hr10("hybrid+nce", "skipped")["high"] < hr10("hybrid", "skipped")["low"]
    assert hr10("hybrid+nce", "played")["value"] > hr10("hybrid", "played")["value"]

    again = preloaded(COMMANDS).run(SEGUE, *command)
    assert again.returncode == 0, again.stderr
    assert "Training" not in again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*") if path.is_file()} == made


@pytest.mark.slow
def test_it_serves_both_so_that_the_player_can_compare_them(tmp_path: Path) -> None:
    options = ["--folder", str(tmp_path), "--sessions", "150", "--tracks", "1000", "--port", "0", "--no-browser"]
    demo = preloaded(COMMANDS).piped(SEGUE, "demo", *options)
    assert demo.stdout is not None
    with demo.stdout as said:
        try:
            address = next(found[0] for line in said if (found := re.search(r"http://\S+$", line.strip())))
            with httpx.Client(base_url=address, trust_env=False, timeout=20) as client:
                live = client.get("/releases/current").json()["live"]
                assert [(one["folder"], one["share"], one["has_map"]) for one in live] == [
                    ("hybrid+nce", 1.0, True),
                    ("hybrid", 0.0, True),
                ]
                assert [one["loss"]["beta"] > 0 for one in live] == [True, False]
                track = client.get("/tracks?limit=1").json()["items"][0]["track_id"]
                for one in live:
                    body = {"events": [{"type": "play", "track_id": track}], "release": one["name"]}
                    answer = client.post("/recommendations/what-if", json=body).json()
                    assert (answer["release"], answer["source"]) == (one["name"], "model")
        finally:
            demo.send_signal(signal.SIGTERM)
            said.read()
    assert demo.wait(10) == 0


def test_a_demo_that_was_swapped_compares_with_the_other_release(tmp_path: Path) -> None:
    """The pointer outlasts the demo: with it, the release that is live must not be compared with itself."""
    from segue.cli.demo import SYSTEMS, _current_and_other

    first, second = SYSTEMS
    for name in SYSTEMS:
        (tmp_path / name).mkdir()
    assert _current_and_other(tmp_path) == (first, second)
    (tmp_path / "current").write_text(f"{second}\n{first}\n")
    assert _current_and_other(tmp_path) == (second, first)
