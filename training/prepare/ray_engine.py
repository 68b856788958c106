"""`segue prepare --engine ray`: the tasks of training.prepare.pipeline on a Ray cluster, or on this machine.

It uses Ray's tasks and objects (https://docs.ray.io/en/latest/ray-core/tasks.html), not Ray Data. Each block already
belongs to a partition, so a shuffle is a list of references. With twenty splits in eight partitions (16 MB in all), Ray
Data took more than ten seconds and tasks less than one. Ray Data also installs pandas and PyArrow.

Ray places the tasks, retries those of lost machines, and spills what does not fit into memory to disk. Usage statistics
and the dashboard are off. A Ray that is started here listens on loopback only and stops at the end.
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
from training.prepare.disk_engine import MAX_PARTITIONS, split_bytes_of
from training.prepare.pipeline import Engine, PrepareJob, PrepareResult, run_tasks
from training.prepare.sources import input_splits

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 (the folder of Ray's objects, not a file of ours)
_STORE_BYTES: Final = (80 << 20, 2 << 30)  # Ray's own minimum, and the size from which it may spill to disk
_ANSWER_S: Final = 5.0
_ATTEMPTS: Final = 3  # Ray gives its own processes 30 s to start, which can be too short on a busy machine
_PORT: Final = 6379
_CLIENT_PORT: Final = 10001

# Ray reads these when it is imported or starts processes. Otherwise Polars would start a thread per core in each task.
_NO_ERROR_OUTPUT: Final = {"RAY_IGNORE_UNHANDLED_ERRORS": "1"}  # Ray would print an error once per waiting task
_QUIET: Final = _NO_ERROR_OUTPUT | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # needed on every system: otherwise Ray does not use the loopback address
    "RAY_prestart_worker_first_driver": "0",
    "POLARS_MAX_THREADS": "1",
}


def ray_engine(address: str | None = None, *, split_bytes: int | None = None) -> Engine:
    """An engine for training.prepare.pipeline.prepare.

    `address` is `host:port` of a cluster that this machine belongs to, or `ray://host:port` of another one. Without an
    address, Ray is started on this machine with one process per core. Logs must have the same path
    on all machines. Raises BadOption if the cluster does not answer, and ModuleNotFoundError if Ray is not installed.
    """

    def engine(job: PrepareJob) -> PrepareResult:
        # Tasks run in another folder than this process.
        job = job._replace(files=[file.absolute() for file in job.files], scratch=job.scratch.absolute())
        splits = input_splits(job.files, split_bytes or split_bytes_of(job.files))
        partitions = min(len(splits), MAX_PARTITIONS)
        with (
            _scratch_folder(job, address) as scratch,
            DeferredInterrupts() as interrupts,
            connected(address) as ray,
        ):
            interrupts.check()
            return run_tasks(_RayTasks(ray, interrupts.check), job, splits, partitions, scratch)

    return engine


class _RayTasks:
    """A TaskRunner on Ray."""

    def __init__(self, ray: Any, check_interrupt: Callable[[], None]) -> None:
        """`check_interrupt` raises an interrupt that arrived while Ray was waiting."""
        self._ray = ray
        self._check_interrupt = check_interrupt
        self._remote: dict[Callable[..., Any], Any] = {}

    def start(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> list[Any]:
        """See TaskRunner."""
        if function not in self._remote:
            self._remote[function] = self._ray.remote(function)
        found = self._remote[function].options(num_returns=returns).remote(*arguments)
        return [found] if returns == 1 else list(found)

    def share(self, value: Any) -> Any:
        """See TaskRunner."""
        return self._ray.put(value)

    def result(self, reference: Any) -> Any:
        """See TaskRunner. Raises BadLog if the cluster fails."""
        try:
            found = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, SegueError):
                raise cause from None
            raise BadLog(f"a task on Ray failed: {_last_line(cause)}: are Segue and the log the same there?") from error
        except self._ray.exceptions.RayError as error:
            raise BadLog(f"Ray lost a task: {_last_line(error)}: is there memory and disk enough?") from error
        self._check_interrupt()
        return found


class DeferredInterrupts:
    """A context that remembers an interrupt, and raises it again in `check` and at the end.

    Ray handles signals while it waits, and a KeyboardInterrupt that a handler raises there can get lost.
    """

    def __init__(self) -> None:
        self._arrived = False
        self._before: dict[int, Callable[..., Any]] = {}

    def __enter__(self) -> Self:
        """Wrap the handlers of SIGINT and SIGTERM. Only the main thread may set handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._before[number] = handler
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Check for the last time. An interrupt may also have caused the error."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None or issubclass(kind, Exception):
            self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if one arrived."""
        if self._arrived:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        try:
            self._before[number](number, frame)
        except KeyboardInterrupt:
            self._arrived = True
            raise


@contextlib.contextmanager
def _scratch_folder(job: PrepareJob, address: str | None) -> Iterator[Path | None]:
    """The folder for copies of tasks, deleted at the end. None: the temporary folder of each machine of a cluster."""
    if address is not None:
        yield None
        return
    with tempfile.TemporaryDirectory(dir=job.scratch, prefix=".log-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def connected(address: str | None = None, cpus: int | None = None) -> Iterator[Any]:
    """Ray, connected to a cluster or started, and disconnected or stopped at the end.

    Engines that run within this context use the same Ray. Raises the errors of `ray_engine`.
    """
    if address is not None:
        _check_reachable(address)
    with _environment(_NO_ERROR_OUTPUT if address else _QUIET):
        ray = importlib.import_module("ray")
        importlib.import_module("ray.exceptions")
        if ray.is_initialized():  # by the calling program
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
    """Restore the handler of SIGTERM. Ray sets one that exits the process; here that is an interrupt."""
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
    except Exception as error:  # Ray has no common class for its errors
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
        except Exception as error:  # Ray has no common class for its errors
            ray.shutdown()
            if attempt == _ATTEMPTS - 1:
                raise BadOption(f"Ray does not start on this machine: {_last_line(error)}") from error
        else:
            return


def _object_store_bytes() -> int:
    """The shared memory that Ray may use for objects: a third of the free memory, within bounds."""
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else 0
    smallest, largest = _STORE_BYTES
    return max(smallest, min(largest, free // 3))


def _check_reachable(address: str) -> None:
    """Raise BadOption if nothing listens at the address. Ray itself would retry for minutes."""
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
    """Set environment variables that are not set yet, for the processes started in this context."""
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
