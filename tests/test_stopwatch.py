"""The stopwatch of the tests counts waiting and computing, and no pause of the machine."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.stopwatch import Elapsed, Stopwatch, until


def test_a_pause_of_the_machine_counts_as_one_beat() -> None:
    wall, used = 0.0, 0.0
    elapsed = Elapsed(lambda: wall, lambda: used)
    wall = 0.02
    assert elapsed.beat() == pytest.approx(0.02)
    wall += 200  # nothing ran in this time
    assert elapsed.beat() == pytest.approx(0.27)
    wall += 3
    used += 3  # this process computed, and its other threads had to wait
    assert elapsed.beat() == pytest.approx(3.27)
    wall += 1
    used += 4  # on four processors
    assert elapsed.beat() == pytest.approx(4.27)


def test_waiting_counts_in_full() -> None:
    with Stopwatch() as watch:
        time.sleep(0.5)
        so_far = watch.seconds
    assert 0.4 < so_far <= watch.seconds < 5
    total = watch.seconds
    time.sleep(0.05)
    assert watch.seconds == total


def test_a_process_that_stood_still_counts_little_of_it() -> None:
    """A stopped process is to its stopwatch what a paused machine is."""
    program = (
        "import time; from tests.stopwatch import Stopwatch\n"
        "with Stopwatch() as watch: print('begun', flush=True); input()\n"
        "print(watch.seconds)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(2)
        os.kill(process.pid, signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert float(process.stdout.readline()) < 1


def test_until_returns_once_the_condition_holds_and_fails_with_the_message() -> None:
    answers = iter([False, False, True])
    assert until(lambda: next(answers)) < 5
    with pytest.raises(AssertionError, match="still away"):
        until(lambda: False, 0.1, lambda: "still away")
