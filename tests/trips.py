"""Which product files a request, a training step and a preparation pass, in the order of their first call.

    python -m tests.trips request|step|prepare FOLDER       prints JSON: {trip: [file, ...]}

Files are recorded by the interpreter's profiler, in this process. Every trip is taken once before it is recorded, so
imports do not count. Files that fewer than most repetitions pass belong to background work and do not count either.
"""

import contextlib
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import httpx

from tests.preloaded import lighten_training

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = ("segue", "service", "training", "index")
REPEATS: Final = 5
_ENOUGH: Final = 4  # backward passes
SETTLE_S: Final = 0.2  # what is written after the response belongs to the request

_prefixes: Final = {f"{ROOT / package}{os.sep}": package for package in PACKAGES}
_recorded: list[str] | None = None
_backward_passes: list[int] = []  # where they begin in _recorded


def profile(frame: FrameType, event: str, _: Any) -> None:
    """Record the file of every call of a product's function."""
    if _recorded is None or event != "call":
        return
    code = frame.f_code
    file = code.co_filename
    if code.co_name == "backward" and file.endswith(f"torch{os.sep}autograd{os.sep}__init__.py"):
        _backward_passes.append(len(_recorded))
        if len(_backward_passes) == _ENOUGH:
            sys.setprofile(None)  # the rest of a training takes several times as long with it
    elif code.co_name != "<module>" and file.startswith(tuple(_prefixes)):
        _recorded.append(str(Path(file).relative_to(ROOT)))


@contextlib.contextmanager
def recording() -> Iterator[list[str]]:
    """The files of all calls within."""
    global _recorded  # noqa: PLW0603 (the interpreter calls the profiler)
    _backward_passes.clear()
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None


def start_profiler() -> None:
    """Call `profile` from now on, in threads that are yet to start as well. It slows down everything."""
    threading.setprofile(profile)
    sys.setprofile(profile)


def in_order(files: list[str]) -> list[str]:
    """Each file once."""
    return list(dict.fromkeys(files))


def segue(*arguments: object) -> None:
    """Run a command in this process."""
    from segue.cli import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main([str(argument) for argument in arguments])
    if code:
        sys.exit(f"segue {arguments[0]} ended with {code}: {output.getvalue()}")


def preparation(folder: Path) -> list[str]:
    """`segue prepare events`, in memory."""
    log = folder / "log.csv"
    rows = (
        f"u{user},t{(7 * user + 3 * n) % 40},{10**9 + 100_000 * user + 60 * n}" for user in range(9) for n in range(12)
    )
    log.write_text("user_id,track_id,timestamp\n" + "\n".join(rows) + "\n")
    segue("prepare", "events", log, "--out", folder / "first")
    start_profiler()
    with recording() as files:
        segue("prepare", "events", log, "--out", folder / "second")
    return in_order(files)


def training_step(folder: Path) -> list[str]:
    """One step of SASRec with the skip loss, from its batch on. Recorded from one backward pass to the next."""
    small = ("--set", "epochs=1", "--set", "dimension=16")
    segue("train", folder / "dataset", "--out", folder / "warm", *small)
    start_profiler()
    with recording() as files:
        segue("train", folder / "dataset", "--out", folder / "trained", *small)
        start, end = _backward_passes[_ENOUGH - 2 : _ENOUGH]
    step = files[start:end]
    first = step.index("training/data/loader.py")
    return in_order(step[first:] + step[:first])


def requests(folder: Path) -> dict[str, list[str]]:
    """The two hot calls of a service in this process. A thread sends the requests, then ends the service."""
    os.environ["SEGUE_DATA_DIR"] = str(folder / "data")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found: dict[str, list[str]] = {}

    def trip(client: httpx.Client, method: str, path: str, **request: Any) -> list[str]:
        passed = []
        for number in range(REPEATS + 1):  # the first one is not recorded
            with recording() as files:
                client.request(method, path, **request).raise_for_status()
                time.sleep(SETTLE_S)
            passed.append(in_order(files) if number else [])
        times = Counter(file for files in passed for file in files)
        return [file for file in passed[-1] if 2 * times[file] > REPEATS]

    def drive() -> None:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline:
                    with contextlib.suppress(httpx.HTTPError):
                        if client.get("/health/live").is_success:
                            break
                    time.sleep(0.05)
                track = client.get("/tracks").json()["items"][0]["track_id"]
                events = {"events": [{"type": "play", "track_id": track}]}
                found["POST /sessions/{id}/events"] = trip(client, "POST", "/sessions/me/events", json=events)
                found["GET /recommendations"] = trip(client, "GET", "/recommendations?session_id=me")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    start_profiler()
    thread = threading.Thread(target=drive, name="client")
    thread.start()
    segue("serve", folder / "dataset.release", "--port", port)
    thread.join()
    return found


def main() -> None:
    """Take one kind of trip: the timer of a stopped service would end this process during the next."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind != "prepare":
        lighten_training()
        segue("simulate", "--tracks", 1000, "--sessions", 400 if kind == "step" else 150, "--out", folder / "dataset")
    if kind == "request":
        segue("train", folder / "dataset", "--out", folder / "dataset.release", "--set=epochs=1", "--set=dimension=16")
        found = requests(folder)
    else:
        found = {"A training step": training_step(folder)} if kind == "step" else {"segue prepare": preparation(folder)}
    sys.setprofile(None)
    sys.stdout.write(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
