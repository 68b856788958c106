"""Start Python processes by fork from one that has already imported the heavy packages.

A service imports for 1.5 s of processor time, an evaluation for 3 s; a fork takes 0.02 s. Everything else is as
in a process that is started with `subprocess.Popen`: an environment, a folder and files of its own, signals with their
usual handlers, and its exit functions.
"""

import atexit
import contextlib
import functools
import gc
import hashlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

SERVICE: Final = ("service.server", "service.app", "segue.cli", "rich.progress")
COMMANDS: Final = (
    *SERVICE,
    *("polars", "torch", "torch._dynamo", "onnx", "onnxruntime", "training.run"),
    *("training.evaluation.evaluate", "training.evaluation.compare.report", "training.data.describe.statistics"),
)
SEGUE: Final = "import sys; from segue.cli import main; sys.exit(main(sys.argv[1:]))"
_LONGEST: Final = 1_000_000


class Child:
    """A process that was forked for this one, with the methods of `subprocess.Popen`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.stdout: IO[Any] | None = None
        self.pid = int(connection.recv(20))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code; None while the process runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("a preloaded process", timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                answer = self._connection.recv(20)
            except (TimeoutError, BlockingIOError):
                return None
            self.returncode = int(answer) if answer else -signal.SIGKILL  # the server itself was ended
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """A process that has imported `modules` and forks."""

    def __init__(self, modules: Sequence[str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server = ours
        self._name = f"segue-tests-{os.getpid()}-{id(self)}"
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listening.bind(f"\0{self._name}")
        listening.listen(100)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(theirs.fileno()), str(listening.fileno()), *modules],
            pass_fds=[theirs.fileno(), listening.fileno()],
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith("SEGUE_")},
        )
        theirs.close()
        listening.close()

    @property
    def program(self) -> str:
        """The text of a program that starts `segue` here, with its own arguments, environment, folder and files."""
        return f"#!{sys.executable} -IS\n{_PROGRAM}start({self._name!r}, {SEGUE!r})\n"

    def start(
        self,
        code: str,
        *arguments: object,
        files: tuple[int, int, int],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        new_session: bool = False,
    ) -> Child:
        """Run `code` as the main module of a new process. `files`: numbers of its stdin, stdout, stderr."""
        argv, environment = ["-c", *map(str, arguments)], dict(os.environ if env is None else env)
        request = json.dumps([code, argv, environment, str(cwd or Path.cwd()), new_session]).encode()
        assert len(request) < _LONGEST
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(self._server, [request], [theirs.fileno(), *files])
        theirs.close()
        return Child(ours)

    def piped(self, code: str, *arguments: object, **options: Any) -> Child:
        """Run `code` without stdin; what it prints, stderr too, is `stdout` of the process, a text file."""
        here, there = os.pipe()
        with Path(os.devnull).open() as nothing:
            child = self.start(code, *arguments, files=(nothing.fileno(), there, there), **options)
        os.close(there)
        child.stdout = os.fdopen(here)
        return child

    def run(
        self, code: str, *arguments: object, timeout: float = 240, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run `code` to its end, without stdin; what it prints goes through files."""
        with (
            Path(os.devnull).open() as nothing,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            child = self.start(code, *arguments, files=(nothing.fileno(), out.fileno(), err.fileno()), **options)
            try:
                done = child.wait(timeout)
            except subprocess.TimeoutExpired:
                child.kill()
                raise
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess([code, *map(str, arguments)], done, out.read(), err.read())


@functools.cache
def preloaded(modules: Sequence[str]) -> Preloaded:
    """The one of this test process."""
    return Preloaded(modules)


def segue(*arguments: object, code: int = 0, timeout: float = 240) -> str:
    """Run a command, which must end with this exit code; return what it prints to stdout."""
    done = preloaded(COMMANDS).run(SEGUE, *arguments, timeout=timeout)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


GRAPHS: Final = "TESTS_GRAPHS"  # the environment variable that names the folder of shared graphs


def lighten_training() -> None:
    """Save most of the time that a training of this process spends on its map and its export.

    t-SNE of 1,000 tracks takes 2 s, of 100 landmarks 0.2; tests of the map set their own. The first export of an
    architecture takes 3 to 7 s and is shared between all processes of a test run.
    """
    drawing = importlib.import_module("training.track_map")
    drawing.LANDMARKS = 100  # type: ignore[attr-defined]
    exporter = importlib.import_module("training.export_onnx")
    if GRAPHS not in os.environ or hasattr(exporter._graph, "__wrapped__"):
        return
    graph, folder = exporter._graph, Path(os.environ[GRAPHS])

    @functools.wraps(graph)
    def shared(encoder: Any) -> bytes:
        file = folder / hashlib.sha256(repr(encoder.architecture).encode()).hexdigest()
        if not file.exists():
            draft = file.with_suffix(f".{os.getpid()}")
            draft.write_bytes(graph(encoder))
            draft.rename(file)
        return file.read_bytes()

    exporter._graph = shared  # type: ignore[attr-defined]


_PROGRAM: Final = """
import json, os, signal, socket, sys

def start(server, code):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect("\\0" + server)
        request = [code, ["-c", *sys.argv[1:]], dict(os.environ), os.getcwd(), False]
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        process = int(connection.recv(20))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(process, number))
        code = int(connection.recv(20) or -signal.SIGKILL)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)

"""
_MAIN: Final = "import tests.preloaded, sys; tests.preloaded.serve(*map(int, sys.argv[1:3]), sys.argv[3:])"


def serve(requests: int, programs: int, modules: Sequence[str]) -> None:
    """Import, then fork a child for each request, and tell the exit code of each child. Ends with the other side.

    `requests` and `programs` are the numbers of the sockets of a Preloaded and of its programs.
    """
    for name in modules:
        importlib.import_module(name)
    if "torch" in sys.modules:
        lighten_training()
    gc.freeze()  # a child's collector writes to no page that it shares
    server, listening = socket.socket(fileno=requests), socket.socket(fileno=programs)
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end this process
    children: dict[int, socket.socket] = {}
    sources = {server.fileno(): server, listening.fileno(): listening}
    while True:
        ready, _, _ = select.select([*sources, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _report_ended(children)
        for asked in (sources[number] for number in ready if number in sources):
            connection = None if asked is server else asked.accept()[0]
            request, files, _, _ = socket.recv_fds(connection or server, _LONGEST, 4)
            if not request:
                return
            if connection is None:
                connection = socket.socket(fileno=files.pop(0))
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                _close(server, listening, connection, *children.values(), woken, waker)
                _run(_become(json.loads(request), files))
            children[child] = connection
            _tell(connection, child)
            _close(*files)


def _close(*opened: socket.socket | int) -> None:
    for one in opened:
        os.close(one if isinstance(one, int) else one.detach())


def _report_ended(children: dict[int, socket.socket]) -> None:
    while children and (found := os.waitpid(-1, os.WNOHANG))[0]:
        with children.pop(found[0]) as connection:
            _tell(connection, os.waitstatus_to_exitcode(found[1]))


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the test that started this child has closed its connection
        connection.send(str(number).encode(), socket.MSG_NOSIGNAL)


def _become(request: list[Any], files: list[int]) -> str:
    """Take the environment, folder and files of a request; return its code."""
    code, sys.argv, environment, folder, new_session = request
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if new_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    for number, file in enumerate(files):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="backslashreplace")
    return str(code)


def _run(code: str) -> None:
    """Run the main module of a child, and end as an interpreter does, but without tearing down its heap.

    That would copy all pages that it shares with the server, for seconds.
    """
    status = 0
    try:
        exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if isinstance(leaving.code, str):
            sys.stderr.write(f"{leaving.code}\n")
    except BaseException:  # noqa: BLE001 (as the interpreter)
        status = 1
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":  # `segue` in a process of its own, such as one of torchrun, which shares graphs
    lighten_training()
    exec(SEGUE)
