"""`--engine ray`: a real Ray on loopback, which stops at the end. test_prepare_engines compares the datasets."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from segue.cli import main
from segue.errors import BadLog, BadOption
from tests.log_samples import SAMPLES
from tests.prepare_runs import contents, needs_ray, ray_of_two, skip_if_busy
from training.prepare.pipeline import prepare, prepare_options
from training.prepare.ray_engine import DeferredInterrupts, ray_engine

MARK = "SEGUE_TEST_STARTED_IN"
PREPARE = (sys.executable, "-m", "segue", "prepare")
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray for all tests of this file."""
    with ray_of_two() as started:
        yield started


@needs_ray
@pytest.mark.usefixtures("ray")
class TestOnRay:
    def test_a_fault_of_a_task_is_one_line(self, tmp_path: Path, ray: Any) -> None:
        files = SAMPLES["lfm1k"].write(tmp_path / "log")

        def vanishing(what: str, *_: int) -> None:  # when all is read
            if what.startswith("reading"):
                for file in files:
                    file.unlink(missing_ok=True)

        with pytest.raises(BadLog) as caught:
            prepare("lfm1k", files, tmp_path / "out", engine=ray_engine(), progress=vanishing)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupt_that_goes_nowhere_is_not_lost(self, tmp_path: Path, number: signal.Signals) -> None:
        files = SAMPLES["lfm1k"].write(tmp_path / "log")

        def swallowing(what: str, *_: int) -> None:
            if what.startswith("reading"):
                with contextlib.suppress(KeyboardInterrupt):
                    signal.raise_signal(number)

        before = signal.signal(number, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                prepare("lfm1k", files, tmp_path / "out", engine=ray_engine(), progress=swallowing)
            assert signal.getsignal(number) is signal.default_int_handler
        finally:
            signal.signal(number, before)
        assert [path.name for path in tmp_path.iterdir()] == ["log"]

    def test_nothing_listens_to_other_machines(self) -> None:
        listening = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # Ray ends processes that have nothing to do
                connections = process.net_connections()
                listening += [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN]
        assert listening
        assert set(listening) <= set(LOOPBACK)

    def test_a_cluster_is_joined_by_its_address_and_left_running(self, tmp_path: Path, ray: Any) -> None:
        sample = SAMPLES["mssd"]
        files = sample.write(tmp_path / "log")
        plain = prepare("mssd", files, tmp_path / "plain", prepare_options(**sample.options))
        address = ray.get_runtime_context().gcs_address
        options = ["--skip-flag", "skip_3", "--max-session-plays", "7"]
        done = subprocess.run(
            [
                *PREPARE,
                "mssd",
                *files,
                "--out",
                tmp_path / "tasks",
                *options,
                "--engine",
                "ray",
                "--ray-address",
                address,
            ],
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr.count("segue:")) == (0, 0), done.stderr
        assert contents(tmp_path / "tasks") == contents(tmp_path / "plain")
        assert plain.dataset.facts.fingerprint[:12] in done.stdout
        assert ray.is_initialized()
        assert ray.nodes()[0]["Alive"]


class TestInterrupts:
    def swallowed(self, leads_to: Exception | None = None) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        if leads_to is not None:
            raise leads_to

    def test_one_that_went_nowhere_comes_at_the_end(self) -> None:
        with pytest.raises(KeyboardInterrupt), DeferredInterrupts():
            self.swallowed()

    def test_one_comes_instead_of_the_error_that_it_led_to(self) -> None:
        with pytest.raises(KeyboardInterrupt), DeferredInterrupts():
            self.swallowed(leads_to=BadLog("Ray lost a task"))

    def test_without_one_an_error_is_itself(self) -> None:
        with pytest.raises(BadLog), DeferredInterrupts():
            raise BadLog("Ray lost a task")

    def test_a_signal_that_is_ignored_stays_so(self) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with DeferredInterrupts():
                signal.raise_signal(signal.SIGINT)
                assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, before)


class TestRefusals:
    def test_without_ray_the_extra_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = SAMPLES["lfm1k"].write(tmp_path / "log")
        monkeypatch.setitem(sys.modules, "ray", None)
        code = main(["prepare", "lfm1k", *map(str, files), "--out", str(tmp_path / "out"), "--engine", "ray"])
        assert code == 2
        assert (
            capsys.readouterr().err
            == "segue: ray is not installed: in your clone of Segue, run `pip install '.[ray]'`\n"
        )
        assert [path.name for path in tmp_path.iterdir()] == ["log"]

    @pytest.mark.parametrize("scheme", ["", "ray://"])
    def test_a_cluster_that_does_not_answer_is_named_at_once(self, tmp_path: Path, scheme: str) -> None:
        files = SAMPLES["lfm1k"].write(tmp_path / "log")
        with socket.socket() as taken:  # bound, but nobody listens
            taken.bind(("127.0.0.1", 0))
            address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(BadOption, match="Connection refused") as caught:
                prepare("lfm1k", files, tmp_path / "out", engine=ray_engine(address))
        assert str(caught.value).startswith(f"nothing answers at {address} (")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("address", ["", "somewhere", ":6379", "host:", "host:port", "ray://host"])
    def test_what_is_no_address_is_refused(self, tmp_path: Path, address: str) -> None:
        files = SAMPLES["lfm1k"].write(tmp_path / "log")
        with pytest.raises(BadOption, match="expected host:6379, ray://host:10001 or auto"):
            prepare("lfm1k", files, tmp_path / "out", engine=ray_engine(address))

    def test_an_address_without_the_engine_is_refused(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        code = main(["prepare", "lfm1k", "x", "--out", str(tmp_path / "out"), "--ray-address", "host:6379"])
        assert (code, capsys.readouterr().err.count("has no effect without --engine ray")) == (2, 1)


def started_by(mark: str) -> list[str]:
    """The names of all living processes that have inherited a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
    return found


def _waited_for(condition: Any, limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(condition())


@pytest.fixture
def command(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`segue prepare --engine ray`, started as a session of its own."""
    files = SAMPLES["lfm1k"].write(tmp_path / "log")
    process = subprocess.Popen(
        [*PREPARE, "lfm1k", *files, "--out", tmp_path / "out", "--seed", "3", "--engine", "ray", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, MARK: str(tmp_path)},
    )
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait(30)


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute on two idle cores
class TestACommand:
    def test_it_starts_a_ray_of_its_own_and_ends_it(self, command: subprocess.Popen[str], tmp_path: Path) -> None:
        out, err = command.communicate(timeout=200)
        skip_if_busy(err)
        assert (command.returncode, err) == (0, self.malformed(tmp_path))
        prepare("lfm1k", [tmp_path / "log"], tmp_path / "plain", prepare_options(seed=3))
        assert contents(tmp_path / "out") == contents(tmp_path / "plain")
        assert json.loads(out)["files"] == 3
        assert _waited_for(lambda: not started_by(str(tmp_path)), 200)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupt_leaves_nothing(
        self, command: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
    ) -> None:
        assert _waited_for(lambda: "raylet" in started_by(str(tmp_path)), 200)
        command.send_signal(number)
        _, err = command.communicate(timeout=200)
        assert (command.returncode, err.strip()) == (130, "segue: interrupted")
        assert [path.name for path in tmp_path.iterdir()] == ["log"]
        assert _waited_for(lambda: not started_by(str(tmp_path)), 200)

    @staticmethod
    def malformed(folder: Path) -> str:
        """What the command says of malformed lines."""
        files = sorted((folder / "log").iterdir())
        report = prepare("lfm1k", files, folder / "told", prepare_options(seed=3))
        lines = "".join(f"  {line}\n" for line in report.malformed_examples)
        return f"{report.malformed} of {report.lines:,} lines could not be read and were ignored. Examples:\n{lines}"
