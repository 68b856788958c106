"""Ray engine of `segue prepare --engine ray`: runs the tasks of training.prepare.pipeline on a Ray cluster.

Without a cluster address, the engine starts Ray on this machine. This local Ray instance listens only on the loopback
interface and stops at the end. Its usage statistics and dashboard are disabled.

The engine uses Ray tasks and objects (https://docs.ray.io/en/latest/ray-core/tasks.html), not Ray Data. Each block
already belongs to a partition, so a shuffle only passes lists of references. In a test with 20 splits, 8 partitions and
16 MB of data, Ray Data took more than 10 s and Ray tasks less than 1 s. Ray Data also requires pandas and PyArrow.

Ray schedules the tasks, retries the tasks of lost machines, and spills objects to disk if the memory is full.
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

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 (Ray's shared-memory folder, not a temporary file)
# Minimum and maximum size of Ray's object store. Ray requires the minimum and spills to disk if the store is full.
_STORE_BYTES: Final = (80 << 20, 2 << 30)
_ANSWER_S: Final = 5.0
_ATTEMPTS: Final = 3  # Ray's processes must start within 30 s, which can be too short on a busy machine
_PORT: Final = 6379
_CLIENT_PORT: Final = 10001

# Environment variables. Ray reads them during its import and when it starts processes. Without POLARS_MAX_THREADS,
# Polars would start one thread per core in each task.
_NO_ERROR_OUTPUT: Final = {"RAY_IGNORE_UNHANDLED_ERRORS": "1"}  # otherwise Ray prints an error for each waiting task
_QUIET: Final = _NO_ERROR_OUTPUT | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # required for the loopback address on every system, also on Linux
    "RAY_prestart_worker_first_driver": "0",
    "POLARS_MAX_THREADS": "1",
}


def ray_engine(address: str | None = None, *, split_bytes: int | None = None) -> Engine:
    """Return an engine for `training.prepare.pipeline.prepare` that runs tasks on Ray.

    `address` is `host:port` if this machine is part of the cluster, or `ray://host:port` for a remote cluster. Without
    an address, the engine starts Ray on this machine with one process per core. The log files must have the same path
    on all machines. `split_bytes` is the maximum size of an input split in bytes.

    The engine raises:
        BadOption: The cluster does not answer, or Ray cannot start.
        ModuleNotFoundError: Ray is not installed.

    """

    def engine(job: PrepareJob) -> PrepareResult:
        if address is not None and (copied := next((file for file in job.files if file.shown), None)) is not None:
            raise BadOption(
                f"{copied} is a copy on this machine alone: give files that all machines of the cluster see"
            )
        # Tasks do not run in the current folder of this process, so all paths must be absolute.
        files = [file._replace(path=file.path.absolute()) for file in job.files]
        job = job._replace(files=files, scratch=job.scratch.absolute())
        splits = input_splits(job.files, split_bytes or split_bytes_of(job.files), job.kind, job.options.encoding)
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
    """Runs tasks on Ray. Implements training.prepare.pipeline.TaskRunner."""

    def __init__(self, ray: Any, check_interrupt: Callable[[], None]) -> None:
        """Create a task runner. `check_interrupt` raises KeyboardInterrupt if a signal arrived during a wait of Ray."""
        self._ray = ray
        self._check_interrupt = check_interrupt
        self._remote: dict[Callable[..., Any], Any] = {}

    def start(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> list[Any]:
        """Submit a function call to Ray and return a list of `returns` object references.

        `arguments` can be object references. Ray passes their values to the function.
        """
        if function not in self._remote:
            self._remote[function] = self._ray.remote(function)
        found = self._remote[function].options(num_returns=returns).remote(*arguments)
        return [found] if returns == 1 else list(found)

    def share(self, value: Any) -> Any:
        """Store a value in Ray's object store and return its reference."""
        return self._ray.put(value)

    def result(self, reference: Any) -> Any:
        """Wait for the value of a reference and return the value.

        Raises:
            BadLog: The task failed, or Ray lost the task.
            SegueError: The function raised this error.

        """
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
    """A context manager that records a KeyboardInterrupt and raises it again in `check` and at the end.

    If a signal handler raises KeyboardInterrupt while Ray waits, Ray can suppress the exception.
    """

    def __init__(self) -> None:
        self._arrived = False
        self._before: dict[int, Callable[..., Any]] = {}

    def __enter__(self) -> Self:
        """Wrap the handlers of SIGINT and SIGTERM. In other threads do nothing: only the main thread can set them."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._before[number] = handler
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Restore the signal handlers and check for an interrupt, which can also be the cause of another exception."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None or issubclass(kind, Exception):
            self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal handler raised KeyboardInterrupt earlier."""
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
    """Create a folder for the temporary files of tasks, and delete the folder at the end.

    With an `address`, yield None: each machine of the cluster uses its own temporary folder.
    """
    if address is not None:
        yield None
        return
    with tempfile.TemporaryDirectory(dir=job.scratch, prefix=".log-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def connected(address: str | None = None, cpus: int | None = None) -> Iterator[Any]:
    """Connect to the cluster at `address`, or start Ray on this machine with `cpus` cores. Yield the module `ray`.

    At the end, disconnect from the cluster or stop Ray. Engines inside this context share one Ray instance.

    Raises:
        BadOption: The cluster does not answer, or Ray cannot start.
        ModuleNotFoundError: Ray is not installed.

    """
    if address is not None:
        _check_reachable(address)
    with _environment(_NO_ERROR_OUTPUT if address else _QUIET):
        ray = importlib.import_module("ray")
        importlib.import_module("ray.exceptions")
        if ray.is_initialized():  # the calling program has initialised Ray
            yield ray
            return
        # Ray adds the current folder of `ray.init` to the import path of its workers. A user's own `training` package
        # in this folder would hide Segue's package, so use an empty folder. It must exist until the workers exit.
        with tempfile.TemporaryDirectory(prefix="segue-ray-", ignore_cleanup_errors=True) as empty:
            try:
                with _restore_signals(), contextlib.chdir(empty):
                    _join(ray, address) if address else _start(ray, cpus)
                yield ray
            finally:
                ray.shutdown()


@contextlib.contextmanager
def _restore_signals() -> Iterator[None]:
    """Restore the handler of SIGTERM at the end, because Ray replaces it by a handler that exits the process.

    If Ray's handler raises SystemExit, raise KeyboardInterrupt instead.
    """
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
    except Exception as error:  # Ray has no common base class for its errors
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
        except Exception as error:  # Ray has no common base class for its errors
            ray.shutdown()
            if attempt == _ATTEMPTS - 1:
                raise BadOption(f"Ray does not start on this machine: {_last_line(error)}") from error
        else:
            return


def _object_store_bytes() -> int:
    """Return the size of Ray's object store: a third of the free shared memory, limited to the range _STORE_BYTES."""
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else 0
    smallest, largest = _STORE_BYTES
    return max(smallest, min(largest, free // 3))


def _check_reachable(address: str) -> None:
    """Check that a server listens at `address`. Without this check, Ray retries for minutes.

    Raises:
        BadOption: The address is malformed, or no server answers.

    """
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
    """Set environment variables inside the context, for this process and its children.

    Variables that are already set keep their values.
    """
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
