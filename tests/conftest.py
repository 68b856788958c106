"""Fixtures of the service tests: a tiny release with known correct answers, and a service process."""

import contextlib
import logging
import os

# Tests run beside each other. torch, FAISS and NumPy read this when they are imported, and so do processes that tests
# start. A test that needs more threads asks for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import hypothesis
import numpy as np
import polars as pl
import pytest
import redis
import structlog
from httpx._transports import default as transports

from segue.catalogue import Catalogue
from segue.release import DatasetFacts, Release, ReleaseMetadata, WindowFacts, write_release
from service.sessions.embedded_redis import redis_server_binary
from tests.live.redis_server import free_pair
from tests.preloaded import GRAPHS, SERVICE, Child, lighten_training, preloaded
from tests.stopwatch import until

# httpx reads the certificates of all authorities for each client, which takes 25 ms. Tests have many clients.
transports.create_ssl_context = cache(transports.create_ssl_context)  # type: ignore[attr-defined]

# A busy machine may take longer for an answer than the five seconds that httpx waits by default.
for _call in (httpx.get, httpx.post, httpx.put, httpx.Client.__init__):
    assert _call.__kwdefaults__ is not None
    _call.__kwdefaults__["timeout"] = httpx.Timeout(20)

# A busy machine makes one example of a property slow. Tests do not measure time.
hypothesis.settings.register_profile("segue", deadline=None)
hypothesis.settings.load_profile("segue")

GENRES, TRACKS_OF_A_GENRE = 6, 12
WINDOW = 5
_SERVE = (
    "from service.server import serve; from service.settings import read_settings; import sys;"
    "serve(read_settings(), workers=int(sys.argv[1]))"
)


def track_ids() -> list[str]:
    """Twelve tracks of each of six genres, `g0-t00` to `g5-t11`; the last id needs escaping in a URL."""
    ids = [f"g{genre}-t{number:02}" for genre in range(GENRES) for number in range(TRACKS_OF_A_GENRE)]
    return [*ids[:-1], "disc/1 é?&#similar"]


@pytest.fixture(autouse=True)
def logging_ends_with_its_test() -> Iterator[None]:
    """Reset logging: a test configures it with its captured streams, which are closed afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.fixture(autouse=True, scope="module")
def training_is_light() -> None:
    """Draw small maps and export an encoder once in a run, see lighten_training."""
    if "torch" in sys.modules:
        lighten_training()


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder of shared graphs, and restore the handler of SIGINT.

    Background jobs of a shell ignore SIGINT, and child processes inherit that.
    """
    if GRAPHS not in os.environ:  # otherwise this is a process of pytest-xdist
        os.environ[GRAPHS] = tempfile.mkdtemp(prefix="segue-graphs-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(GRAPHS), ignore_errors=True))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release in which a played track recommends its genre and a skipped one lowers it."""
    return write_tiny_release(tmp_path_factory.mktemp("releases") / "tiny")


@pytest.fixture(scope="session")
def other_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The same release with another catalogue: ids and titles start with `x-`."""
    return write_tiny_release(tmp_path_factory.mktemp("releases") / "other", "x-")


@pytest.fixture
def releases_dir(tiny_release: Release, other_release: Release, tmp_path: Path) -> Path:
    """A releases folder with `first` and `second`."""
    for name, release in (("first", tiny_release), ("second", other_release)):
        shutil.copytree(release.path, tmp_path / "releases" / name)
    return tmp_path / "releases"


def write_tiny_release(path: Path, prefix: str = "", more: Mapping[str, Any] = MappingProxyType({})) -> Release:
    """Popularity falls with the row. The encoder is the sum of the window's embeddings, skipped ones times -2.

    `more` are further arrays of the release.
    """
    ids = [prefix + track_id for track_id in track_ids()]
    catalogue = Catalogue.from_frame(
        pl.DataFrame(
            {
                "track_id": ids,
                "plays": list(range(1000, 1000 - len(ids), -1)),
                "skips": [0] * len(ids),
                "title": [None if i == 3 else f"{prefix}Song {i:02}" for i in range(len(ids))],
                "artist": [f"Artist {i // TRACKS_OF_A_GENRE}" for i in range(len(ids))],
                "genre": [f"g{i // TRACKS_OF_A_GENRE}" for i in range(len(ids))],
                "explicit": [None if i == 4 else i % 3 == 0 for i in range(len(ids))],
                "markets": [["DE", "US"] if i % 2 else ["US"] for i in range(len(ids))],
                "year": [2000 + i % 10 for i in range(len(ids))],
            }
        )
    )
    embeddings = np.zeros((catalogue.num_rows, GENRES + 1), dtype=np.float32)
    for i in range(len(ids)):
        embeddings[i + 1, i // TRACKS_OF_A_GENRE] = 1.0
        embeddings[i + 1, GENRES] = (len(ids) - i) / 1000  # no ties: the more popular track first
    angles = np.arange(len(ids)) // TRACKS_OF_A_GENRE * (2 * np.pi / GENRES)
    places = np.zeros((catalogue.num_rows, 2), dtype=np.float32)  # genres lie around the middle, their tracks in a line
    places[1:, 0] = 0.8 * np.cos(angles) + np.arange(len(ids)) % TRACKS_OF_A_GENRE / 100
    places[1:, 1] = 0.8 * np.sin(angles)
    return write_encoder_release(path, catalogue, embeddings, WINDOW, {"map.npy": places, **more})


def write_encoder_release(
    path: Path,
    catalogue: Catalogue,
    embeddings: "np.ndarray[tuple[int, int], np.dtype[np.float32]]",
    window: int = WINDOW,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Release:
    """Write a release with the encoder of `encoder_of` and the embeddings [num_rows, dimension] of a catalogue."""
    draft = ReleaseMetadata(
        model="sasrec",
        options={},
        loss=None,
        window=WindowFacts(length=window),
        dimension=embeddings.shape[1],
        dataset=DatasetFacts(fingerprint="0" * 16, source="tests", split="last-play"),
        source_commit=None,
        evaluation={},
    )
    arrays = {"item_embeddings.npy": embeddings, **more}
    return write_release(path, draft, catalogue, arrays, encoder_of(embeddings))


def encoder_of(embeddings: "np.ndarray[tuple[int, int], np.dtype[np.float32]]") -> bytes:
    """The sum of the window's embeddings, skipped ones times -2."""
    from onnx import TensorProto, checker, helper, numpy_helper

    constants = {
        "embeddings": embeddings,
        "for": np.float32(1.0),
        "against": np.float32(-2.0),
        "last_axis": np.array([-1], dtype=np.int64),
        "window_axis": np.array([1], dtype=np.int64),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["embeddings", "tracks"], ["gathered"]),
            helper.make_node("Where", ["skipped", "against", "for"], ["weights"]),
            helper.make_node("Unsqueeze", ["weights", "last_axis"], ["column"]),
            helper.make_node("Mul", ["gathered", "column"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "window_axis"], ["query"], keepdims=0),
        ],
        "sum_of_the_window",
        [
            helper.make_tensor_value_info("tracks", TensorProto.INT64, ["batch", WINDOW]),
            helper.make_tensor_value_info("skipped", TensorProto.BOOL, ["batch", WINDOW]),
        ],
        [helper.make_tensor_value_info("query", TensorProto.FLOAT, ["batch", embeddings.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


class ServiceProcess:
    """A service in a separate process with the embedded Redis on a free port."""

    def __init__(
        self, release: Path, data_dir: Path, workers: int = 1, prelude: str = "pass", **settings: object
    ) -> None:
        """`prelude` is Python that runs before the service is imported; `settings` go into its environment."""
        self.output: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        # A busy machine may pause Redis or the service for longer than the default limit.
        given = {"release": release, "data_dir": data_dir, "port": 0, "log_level": "info", "redis_timeout_s": 10}
        given |= settings
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SEGUE_")}
        environment |= {f"SEGUE_{name.upper()}": str(value) for name, value in given.items()}
        self.process: Child | subprocess.Popen[str]
        if prelude == "pass":
            self.process = preloaded(SERVICE).piped(_SERVE, workers, env=environment)
        else:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"{prelude}; {_SERVE}", str(workers)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line.rstrip())
            self._lines.put(line.rstrip())
        self._lines.put(None)

    def address(self) -> str:
        """Return the address that the service prints when it is ready."""
        while (line := self._lines.get(timeout=60)) is not None:
            # Its log goes to the same pipe here, and may have begun the line.
            if found := re.search(r"http://\S+$", line):
                return found[0]
        raise AssertionError("\n".join(self.output))

    def client(self) -> httpx.Client:
        """Return a client of the service; waits until it is ready."""
        return httpx.Client(base_url=self.address(), timeout=20, trust_env=False)

    def stop(self) -> int:
        """Stop the service and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._ended()

    def kill(self) -> None:
        """Kill the service without a chance to clean up."""
        self.process.kill()
        self._ended()

    def _ended(self) -> int:
        try:
            until(lambda: self.process.poll() is not None, 30, lambda: "the service does not end")
        except AssertionError:
            self.process.kill()
            raise
        code = self.process.wait()
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def recommended(client: httpx.Client, session_id: str, **query: Any) -> dict[str, Any]:
    """Return the recommendations of a service for a session."""
    answer = client.get("/recommendations", params={"session_id": session_id, **query})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


StartService = Callable[..., ServiceProcess]


@pytest.fixture
def start_service(tiny_release: Release, tmp_path: Path) -> Iterator[StartService]:
    """Return a function that starts services of the tiny release in `tmp_path`; all are stopped at the end."""
    started: list[ServiceProcess] = []

    def start(workers: int = 1, **settings: object) -> ServiceProcess:
        given: dict[str, Any] = {"release": tiny_release.path, "data_dir": tmp_path / "data", **settings}
        started.append(ServiceProcess(workers=workers, **given))
        return started[-1]

    yield start
    for service in started:
        with contextlib.suppress(ValueError):
            service.stop()


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a node of a local Redis Cluster with three nodes and no replicas."""
    with contextlib.ExitStack() as stack:
        ports = [free_pair() for _ in range(3)]
        for port in ports:
            options = {"port": port, "bind": "127.0.0.1", "cluster-enabled": "yes", "save": "", "loglevel": "warning"}
            options |= {"dir": tmp_path_factory.mktemp("node")}
            words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
            server = subprocess.Popen([str(redis_server_binary()), *words], stdout=subprocess.DEVNULL)
            stack.callback(server.wait, 30)
            stack.callback(server.terminate)
        nodes = [stack.enter_context(redis.Redis(port=port, decode_responses=True)) for port in ports]
        for number, node in enumerate(nodes):
            _wait_for(node.ping)
            slots = range(16_384 * number // 3, 16_384 * (number + 1) // 3)
            node.execute_command("CLUSTER", "ADDSLOTS", *slots)
        # A lost message of a handshake is not sent again.
        for node in nodes:
            for _ in range(10):
                for other in nodes[1:]:
                    other.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])
                with contextlib.suppress(AssertionError):
                    until(partial(_knows_all, node, len(ports)), 3)
                    break
            else:
                raise AssertionError(f"the Redis Cluster does not form:\n{node.execute_command('CLUSTER', 'NODES')}")
        yield f"redis://127.0.0.1:{ports[0]}"


def _knows_all(node: "redis.Redis", nodes: int) -> bool:
    facts = str(node.execute_command("CLUSTER", "INFO"))  # type: ignore[no-untyped-call]
    return "cluster_state:ok" in facts and f"cluster_known_nodes:{nodes}" in facts


def _wait_for(ready: Callable[[], Any]) -> None:
    def forgiving() -> Any:
        try:
            return ready()
        except redis.RedisError:
            return False

    until(forgiving, 30, lambda: "a node of the Redis Cluster does not start")


# The files whose tests depend on how Redis keeps sessions. They run with a cluster too.
_STORE_TESTS = frozenset(
    {
        "test_access_over_http",
        "test_calls",
        "test_durability",
        "test_explain",
        "test_fuzzing",
        "test_hot_routes",
        "test_operations",
        "test_schemathesis",
        "test_session_semantics",
        "test_session_stream",
        "test_shared_session",
        "test_swap",
    }
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests of the shared service with the embedded Redis and, if they depend on it, with a cluster."""
    if "running" in metafunc.fixturenames:
        cluster = [pytest.param("cluster", marks=pytest.mark.slow)]
        kinds = ["embedded", *(cluster if metafunc.module.__name__.rpartition(".")[2] in _STORE_TESTS else [])]
        metafunc.parametrize("running", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def running(
    request: pytest.FixtureRequest, tiny_release: Release, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of one shared service; each test uses its own sessions."""
    settings: dict[str, Any] = {"event_log_flush_s": 0.2, "max_request_bytes": 50_000}
    if request.param == "cluster":
        settings |= {
            "redis_url": request.getfixturevalue("redis_cluster"),
            "redis_cluster": True,
            "event_log_flush_s": 1,  # a read of all streams of a cluster is work
            "durability": "memory",
        }
    service = ServiceProcess(tiny_release.path, tmp_path_factory.mktemp("service"), **settings)
    try:
        with service.client() as client:
            yield client
    finally:
        service.stop()
