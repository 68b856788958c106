"""Commands on a terminal of their own: colours, bars, and nothing of them through a pipe."""

import subprocess
import sys

from segue.release import Release
from tests.live.terminal import Terminal

COMMAND = ("--play", "g0-t00", "--skip", "g1-t00", "-k", "3")


def test_recommend_has_bars_and_colours_on_a_terminal(tiny_release: Release) -> None:
    terminal = Terminal("recommend", tiny_release.path, *COMMAND)
    assert terminal.rest() == 0
    assert "\x1b[36m█" in terminal.text
    assert "Song 11" in terminal.text


def test_recommend_is_plain_through_a_pipe(tiny_release: Release) -> None:
    command = [sys.executable, "-m", "segue", "recommend", str(tiny_release.path), *COMMAND]
    done = subprocess.run(command, capture_output=True, check=True)
    assert b"\x1b" not in done.stdout
    assert [line.count(b"\t") for line in done.stdout.splitlines()] == [0, 4, 4, 4, 4]
