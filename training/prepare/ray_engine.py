"""`segue prepare --engine ray`: the tasks of training.prepare.partitioned on a Ray cluster, or on this machine.

Ray's tasks and objects (https://docs.ray.io/en/latest/ray-core/tasks.html) carry them, not Ray Data: what is moved
here are pieces that know their place, so a shuffle is a list of references. Twenty portions in eight partitions, 16 MB
in all, took Ray Data more than ten seconds and tasks less than one, and Ray Data installs pandas and PyArrow besides.

Ray places the tasks, retries those of machines that are lost, and keeps what does not fit into memory on disk. Nothing
is reported to its makers, and no dashboard runs. A Ray that is started here listens on loopback alone and ends with
the work.
"""

import contextlib
import importlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

from segue.errors import BadLog, BadOption, SegueError
from training.prepare.partitioned import portion_bytes_of, prepare_in_tasks
from training.prepare.pipeline import Engine, PrepareJob, PrepareResult

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 (where Ray keeps its objects, not a file of ours)
_STORE_BYTES: Final = (80 << 20, 2 << 30)  # Ray takes no less; beyond this much it may use the disk
_ANSWER_S: Final = 5.0
_ATTEMPTS: Final = 3  # Ray gives its own processes 30 s to start, which a busy machine may not make
_PORT: Final = 6379
_CLIENT_PORT: Final = 10001

# Read when Ray is imported or starts processes. Polars would start as many threads in each task as there are cores.
_ERRORS_TOLD_HERE: Final = {"RAY_IGNORE_UNHANDLED_ERRORS": "1"}  # and not also by Ray, for each task that was waiting
_QUIET: Final = _ERRORS_TOLD_HERE | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system: without it Ray takes no loopback address
    "RAY_prestart_worker_first_driver": "0",
    "POLARS_MAX_THREADS": "1",
}


def ray_engine(address: str | None = None, *, portion_bytes: int | None = None) -> Engine:
    """An engine for training.prepare.pipeline.prepare.

    `address` is `host:port` of a cluster that this machine belongs to, or `ray://host:port` of one that it does not;
    without one, Ray is started here with one process a core. Logs must be found under the same path on all
    machines. Raises BadOption where the cluster does not answer, and ModuleNotFoundError where Ray is not installed.
    """

    def engine(work: PrepareJob) -> PrepareResult:
        size = portion_bytes or portion_bytes_of(work.files)
        # Tasks run in another folder than this process.
        work = work._replace(files=[file.absolute() for file in work.files], scratch=work.scratch.absolute())
        with _scratch(work, address) as scratch, DeferredInterrupts() as interrupts, connected(address) as ray:
            interrupts.look()
            return prepare_in_tasks(_RayTasks(ray, interrupts.look), work, size, scratch)

    return engine


class _RayTasks:
    """See training.prepare.partitioned.Tasks."""

    def __init__(self, ray: Any, look: Callable[[], None]) -> None:
        """`look` raises an interrupt that came while Ray was at work."""
        self._ray = ray
        self._look = look
        self._remote: dict[Callable[..., Any], Any] = {}

    def start(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> list[Any]:
        """See Tasks."""
        if function not in self._remote:
            self._remote[function] = self._ray.remote(function)
        found = self._remote[function].options(num_returns=returns).remote(*arguments)
        return [found] if returns == 1 else list(found)

    def share(self, value: Any) -> Any:
        """See Tasks."""
        return self._ray.put(value)

    def result(self, reference: Any) -> Any:
        """See Tasks. Raises BadLog where the cluster failed."""
        try:
            found = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, SegueError):
                raise cause from None
            raise BadLog(f"a task on Ray failed: {_last_line(cause)}: are Segue and the log the same there?") from error
        except self._ray.exceptions.RayError as error:
            raise BadLog(f"Ray lost a task: {_last_line(error)}: is there memory and disk enough?") from error
        self._look()
        return found


class DeferredInterrupts:
    """Within, an interrupt is remembered, and raised again by `look` and at the end.

    For Ray looks for signals while it waits, and the KeyboardInterrupt that a handler raises there may go nowhere.
    """

    def __init__(self) -> None:
        self._came = False
        self._before: dict[int, Callable[..., Any]] = {}

    def __enter__(self) -> Self:
        """Watch the handlers of SIGINT and SIGTERM, where this is the main thread: elsewhere none may be set."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._before[number] = handler
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Look for the last time: an error too may be what an interrupt has led to."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None or issubclass(kind, Exception):
            self.look()

    def look(self) -> None:
        """Raise KeyboardInterrupt where one has come."""
        if self._came:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        try:
            self._before[number](number, frame)
        except KeyboardInterrupt:
            self._came = True
            raise


@contextlib.contextmanager
def _scratch(work: PrepareJob, address: str | None) -> Iterator[Path | None]:
    """Where tasks put copies, removed when they have ended; None: where their own machine has room."""
    if address is not None:
        yield None
        return
    with tempfile.TemporaryDirectory(dir=work.scratch, prefix=".log-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def connected(address: str | None = None, cpus: int | None = None) -> Iterator[Any]:
    """Ray, connected to a cluster or started; left again, or ended, whatever happens.

    Engines that prepare logs meanwhile use it. Raises as `ray_engine` does.
    """
    if address is not None:
        _check_reachable(address)
    with _environment(_ERRORS_TOLD_HERE if address else _QUIET):
        ray = importlib.import_module("ray")
        importlib.import_module("ray.exceptions")
        if ray.is_initialized():  # by the program that calls this
            yield ray
            return
        # Ray puts the folder that is current during `ray.init` on the import path of its workers, where a user's own
        # `training` would be imported instead of Segue's package. Workers stay in that folder as long as they run.
        with tempfile.TemporaryDirectory(prefix="segue-ray-", ignore_cleanup_errors=True) as empty:
            try:
                with _restore_signals(), contextlib.chdir(empty):
                    _join(ray, address) if address else _start(ray, cpus)
                yield ray
            finally:
                ray.shutdown()


@contextlib.contextmanager
def _restore_signals() -> Iterator[None]:
    """SIGTERM does afterwards what it did before; meanwhile Ray has it end the process, which is an interrupt here."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _join(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ImportError as error:
        raise BadOption(f"{address} cannot be reached: {error}: install `ray[client]`, or use host:port") from error
    except Exception as error:  # Ray has no class for it
        raise BadOption(f"the cluster at {address} refused: {_last_line(error)}") from error


def _start(ray: Any, cpus: int | None) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_object_store_bytes(),
            )
        except Exception as error:  # Ray has no class for it
            ray.shutdown()
            if attempt == _ATTEMPTS - 1:
                raise BadOption(f"Ray does not start on this machine: {_last_line(error)}") from error
        else:
            return


def _object_store_bytes() -> int:
    """What Ray may take of the shared memory for objects: a third of what is free, within bounds."""
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else 0
    smallest, largest = _STORE_BYTES
    return max(smallest, min(largest, free // 3))


def _check_reachable(address: str) -> None:
    """Raise BadOption where nobody listens: Ray itself would try for minutes."""
    if address == "auto":
        return
    client = address.startswith("ray://")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise BadOption(f"--ray-address is {address!r}: expected host:{_PORT}, ray://host:{_CLIENT_PORT} or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        what = "a Ray client server" if client else "a Ray cluster"
        raise BadOption(f"nothing answers at {address} ({_last_line(error)}): expected {what} there") from error


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables are set for what is started meanwhile, unless somebody has set them."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
