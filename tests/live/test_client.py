"""The Python client against the real service: every method, sync and async, and events that count once."""

import asyncio
import functools
import http.server
import operator
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import httpx
import pytest
import yaml

from segue import client as module
from segue import client_answers as answers
from segue.client import (
    AccessDenied,
    AsyncClient,
    Client,
    Conflict,
    InvalidRequest,
    NoAnswer,
    NotFound,
    RateLimited,
    Recommendations,
    ServiceError,
    Unavailable,
)
from segue.release import Release
from segue.sessions import play, skip
from service.http.keys import new_key, write_keys
from tests.conftest import StartService, recommended, track_ids

LAST = track_ids()[-1]  # it needs escaping

OPENAPI = Path(__file__).parents[2] / "openapi.yaml"
# For tests that count: a call whose answer a busy machine delays is not repeated.
patient_client = functools.partial(Client, timeout_s=20, deadline_s=60)


def new_id() -> str:
    return f"client-{uuid4().hex}"


class TestSync:
    def test_every_method(self, running: httpx.Client) -> None:
        session_id = new_id()
        with patient_client(str(running.base_url)) as client:
            assert client.play(session_id, "g1-t00").length == 1
            assert client.skip(session_id, "g1-t00", ms_played=4000).accepted == 1
            reported = client.events(session_id, [play("g2-t00"), play("gone"), skip("g3-t01")], recommend=3)
            assert (reported.length, reported.unknown_tracks) == (4, ["gone"])
            assert reported.recommendations is not None
            assert len(reported.recommendations.items) == 3

            listed = client.recommend(session_id, 7, repeat="never", exclude=["g2-t03"])
            expected = recommended(running, session_id, k=7, repeat="never", exclude=["g2-t03"])
            assert [item.model_dump(exclude_none=True) for item in listed.items] == expected["items"]
            assert (listed.release, listed.source) == (expected["release"], "model")

            few = client.recommend(session_id, 5, filter="genre:g3|g4,explicit:false", fields=["genre", "year"])
            assert {(item.attributes or {})["genre"] for item in few.items} <= {"g3", "g4"}
            what_if = client.what_if([play("g3-t00")], 6, max_per_artist=2, fields=["genre"])
            assert max(Counter(item.artist for item in what_if.items).values()) == 2
            assert all(set(item.attributes or {}) == {"genre"} for item in what_if.items)
            again = client.events(session_id, [play("g2-t01")], recommend=4, filter="markets:DE", fields=["markets"])
            assert again.recommendations is not None
            assert all("DE" in (item.attributes or {})["markets"] for item in again.recommendations.items)
            assert {track.artist for track in client.search("song", 40, filter="genre:g1")} == {"Artist 1"}
            assert {track.artist for track in client.similar("g1-t00", 5, filter="!genre:g1")} != {"Artist 1"}

            [first, second] = client.recommend_batch([session_id, "a b"], 7, repeat="never")
            assert isinstance(first, Recommendations)
            assert len(first.items) == 7
            assert isinstance(second, InvalidRequest)
            assert "session_id" in second.detail

            events = [play("g1-t00"), skip("g1-t00")]
            assert client.what_if(events, 3, exclude=["g0-t00"]).items[0].rank == 1
            ranked = client.rank(["x", "g0-t00", "g2-t01"], session_id=session_id)
            assert [item.track_id for item in ranked.items] == ["g2-t01", "g0-t00", "x"]
            assert (ranked.unknown, ranked.items[-1].score) == (["x"], None)
            assert client.rank(["g1-t00"], events=events, repeat="never").filtered == ["g1-t00"]

            assert len(client.similar(LAST, 4)) == 4
            assert client.search(LAST)[0].track_id == LAST
            client.forget(session_id)
            assert running.get(f"/sessions/{session_id}").status_code == 404

    def test_stations_likes_and_bans(self, running: httpx.Client) -> None:
        session_id, other, listener = new_id(), new_id(), new_id()
        with patient_client(str(running.base_url)) as client:
            assert client.start_station(session_id, artists=["Artist 2", "nobody"], weight=0.7) == ["nobody"]
            of_station = client.recommend(session_id, 3)
            assert (of_station.source, {item.artist for item in of_station.items}) == ("model", {"Artist 2"})
            client.end_station(session_id)
            assert client.recommend(session_id, 3).source == "popularity"
            assert client.like(session_id, "g4-t00").accepted == 1
            assert client.recommend(session_id, 1).items[0].artist == "Artist 4"
            client.dislike(session_id, "g4-t01")
            client.ban(session_id, "g4-t02", listener_id=listener)
            client.ban(session_id, "g5-t00", listener_id=listener, whole_artist=True)
            found = {item.track_id for item in client.recommend(session_id, 72).items}
            assert not found & {"g4-t01", "g4-t02", *track_ids()[60:]}
            elsewhere = {item.track_id for item in client.recommend(other, 72, listener_id=listener).items}
            assert not elsewhere & {"g4-t02", *track_ids()[60:]}
            client.play(other, "g1-t00", listener_id=listener)
            assert "g4-t02" not in {item.track_id for item in client.recommend(other, 72).items}
            client.forget_listener(listener)
            assert "g4-t02" in {item.track_id for item in client.recommend(other, 72, listener_id=listener).items}

    def test_tracks_are_added_and_taken_down(
        self, start_service: StartService, tiny_release: Release, tmp_path: Path
    ) -> None:
        shutil.copytree(tiny_release.path, tmp_path / "releases" / "tiny")
        with patient_client(start_service(releases_dir=tmp_path / "releases").address()) as client:
            client.add_track("new/1", title="Fresh", neighbours=["g1-t00"])
            client.add_track("g1-t00")  # without facts: a known track as it was
            assert [track.track_id for track in client.search("fresh")] == ["new/1"]
            assert "new/1" in {item.track_id for item in client.what_if([play("g1-t00")], 20).items}
            client.remove_track("g1-t01")
            assert "g1-t01" not in {item.track_id for item in client.what_if([play("g1-t00")], 72).items}
            client.restore_track("g1-t01")
            client.remove_tracks(["g1-t01", "g1-t02"])
            client.restore_tracks(["g1-t01", "g1-t02"])
            assert "g1-t01" in {item.track_id for item in client.what_if([play("g1-t00")], 72).items}

    def test_problems_are_typed_errors(self, running: httpx.Client) -> None:
        with patient_client(str(running.base_url)) as client:
            for call, kind, status in (
                (lambda: client.recommend("s", 101), InvalidRequest, 422),
                (lambda: client.recommend("a b"), InvalidRequest, 422),
                (lambda: client.rank(["a", "a"], events=[]), InvalidRequest, 422),
                (lambda: client.similar("nobody"), NotFound, 404),
                (lambda: client.what_if([], release="nobody"), NotFound, 404),
                (lambda: client.what_if([], caution=1.0), Conflict, 409),
            ):
                with pytest.raises(kind) as caught:
                    call()
                assert caught.value.status == status
                assert str(caught.value) == f"{status} {caught.value.title}: {caught.value.detail}"
            with pytest.raises(InvalidRequest) as invalid:
                client.recommend("s", 0)
            assert invalid.value.errors[0]["field"] == "query.k"

    def test_keys_and_limits(self, start_service: StartService, tmp_path: Path) -> None:
        text, kept = new_key("app", ["client"])
        write_keys(tmp_path / "keys.toml", [kept])
        settings = {"key_rate_limit": 0.1, "rate_limit_burst_s": 20}
        address = start_service(api_keys=tmp_path / "keys.toml", **settings).address()
        with patient_client(address) as nobody, pytest.raises(AccessDenied):
            nobody.recommend("s")
        # The deadline is before the next request is allowed, ten seconds after the one before.
        with Client(address, text, timeout_s=9, deadline_s=9) as client:
            with pytest.raises(AccessDenied, match="403"):
                client.forget("s")
            client.recommend("s")
            client.recommend("s")

            def one_too_many() -> None:
                for _ in range(10):  # more than one only if the machine took seconds for the two before
                    client.recommend("s")

            with pytest.raises(RateLimited) as caught:
                one_too_many()
            assert caught.value.retry_after_s >= 1
        with patient_client(address, text) as patient:
            patient.recommend("s")  # after the time that the service names

    def test_threads_share_a_client(self, running: httpx.Client) -> None:
        session_id = new_id()
        with patient_client(str(running.base_url)) as client:
            threads = [
                threading.Thread(target=client.play, args=(session_id, "g0-t00"), daemon=True) for _ in range(16)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert client.play(session_id, "g0-t00").length == 17


class TestAsync:
    def test_every_kind_of_call(self, running: httpx.Client) -> None:
        session_id = new_id()

        async def test() -> None:
            async with AsyncClient(str(running.base_url), timeout_s=20, deadline_s=60) as client:
                assert (await client.play(session_id, "g1-t00")).length == 1
                assert (await client.skip(session_id, "g1-t00")).length == 1
                await client.events(session_id, [play("g2-t00")])
                lists = await asyncio.gather(*(client.recommend(session_id, k) for k in (3, 5)))
                assert [len(one.items) for one in lists] == [3, 5]
                assert (await client.rank(["x", "g2-t01"], session_id=session_id)).unknown == ["x"]
                assert len((await client.what_if([play("g1-t00")], 3)).items) == 3
                assert len(await client.similar("g0-t00", 2)) == 2
                assert (await client.search("g0-t00"))[0].track_id == "g0-t00"
                with pytest.raises(NotFound):
                    await client.similar("nobody")
                await client.forget(session_id)

        asyncio.run(test())
        assert running.get(f"/sessions/{session_id}").status_code == 404

    def test_a_service_that_is_away_is_no_answer(self) -> None:
        async def test() -> None:
            async with AsyncClient("http://127.0.0.1:1", deadline_s=0.3) as client:
                await client.play("s", "a")

        with pytest.raises(NoAnswer, match=r"Connect(Error|Timeout)"):  # the last attempt may have no time left
            asyncio.run(test())


class Flaky:
    """A server between the client and the service that fails as told; it keeps the bodies that it saw."""

    def __init__(self, service: httpx.Client, failures: list[Callable[[Any], None]]) -> None:
        self.bodies: list[bytes] = []
        self.times: list[float] = []
        flaky = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout: ClassVar[float] = 10

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                flaky.bodies.append(body)
                flaky.times.append(time.monotonic())
                if failures:
                    failures.pop(0)(self)
                    return
                answer = service.post(self.path, content=body, headers={"content-type": "application/json"})
                self.respond(answer.status_code, answer.content)

            def respond(self, status: int, content: bytes = b"", **headers: str) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


def fails(status: int, **headers: str) -> Callable[[Any], None]:
    return lambda handler: handler.respond(status, b"<html>a proxy says no</html>", **headers)


def forwards_then_drops(service: httpx.Client) -> Callable[[Any], None]:
    """The service stores the event, and its answer is lost."""

    def act(handler: Any) -> None:
        headers = {"content-type": "application/json"}
        service.post(handler.path, content=handler.server.seen.bodies[-1], headers=headers).raise_for_status()
        handler.close_connection = True

    return act


@pytest.fixture
def flaky(running: httpx.Client) -> Iterator[Callable[..., Flaky]]:
    started: list[Flaky] = []

    def start(*failures: Callable[[Any], None]) -> Flaky:
        made = Flaky(running, list(failures))
        made.server.seen = made  # type: ignore[attr-defined]
        threading.Thread(target=made.server.serve_forever, daemon=True).start()
        started.append(made)
        return made

    yield start
    for one in started:
        one.server.shutdown()
        one.server.server_close()


class Clock:
    """Time that passes only while the client waits before its next attempt."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


class TestRetries:
    def test_an_event_whose_answer_was_lost_counts_once(
        self, running: httpx.Client, flaky: Callable[..., Flaky]
    ) -> None:
        server, session_id = flaky(forwards_then_drops(running), fails(503), fails(502)), new_id()
        with patient_client(server.url) as client:
            answer = client.events(session_id, [play("g0-t00"), play("g0-t00")])
        assert (answer.length, answer.accepted, answer.duplicates) == (2, 0, 2)
        assert len(server.bodies) == 4
        assert len(set(server.bodies)) == 1  # the same ids each time
        assert len(running.get(f"/sessions/{session_id}").json()["plays"]) == 2

    def test_own_ids_are_kept(self, running: httpx.Client) -> None:
        session_id = new_id()
        with patient_client(str(running.base_url)) as client:
            for _ in range(2):
                answer = client.play(session_id, "g0-t00", event_id="mine")
            assert (answer.length, answer.duplicates) == (1, 1)

    def test_it_waits_as_long_as_the_service_says(self, flaky: Callable[..., Flaky]) -> None:
        server = flaky(fails(503, retry_after="1"))
        with patient_client(server.url) as client:
            client.play(new_id(), "g0-t00")
        assert server.times[1] - server.times[0] >= 1

    @pytest.mark.parametrize(("status", "kind"), [(503, Unavailable), (504, Unavailable), (429, RateLimited)])
    def test_the_deadline_ends_it_with_the_last_problem(
        self, flaky: Callable[..., Flaky], monkeypatch: pytest.MonkeyPatch, status: int, kind: type[ServiceError]
    ) -> None:
        monkeypatch.setattr(module, "time", Clock())
        server = flaky(*[fails(status)] * 100)
        with Client(server.url, timeout_s=20, deadline_s=20) as client, pytest.raises(kind, match="a proxy says no"):
            client.play("s", "a")
        assert 2 <= len(server.bodies) < 100
        server = flaky(fails(503, retry_after="60"))
        with Client(server.url, timeout_s=20, deadline_s=20) as client, pytest.raises(Unavailable):
            client.play("s", "a")  # at once: the service will not answer before the deadline
        assert len(server.bodies) == 1

    @pytest.mark.parametrize("status", [400, 404, 418, 500])
    def test_other_problems_are_not_repeated(self, flaky: Callable[..., Flaky], status: int) -> None:
        server = flaky(*[fails(status)] * 2)
        with patient_client(server.url) as client, pytest.raises(ServiceError) as caught:
            client.play("s", "a")
        assert caught.value.status == status
        assert len(server.bodies) == 1

    def test_a_slow_answer_is_asked_for_again(self, running: httpx.Client, flaky: Callable[..., Flaky]) -> None:
        over = threading.Event()
        server, session_id = flaky(lambda _: over.wait(60)), new_id()
        with Client(server.url, timeout_s=1, deadline_s=60) as client:
            assert client.play(session_id, "g0-t00").length == 1
        over.set()
        assert len(server.bodies) >= 2
        assert len(set(server.bodies)) == 1

    def test_another_server_is_named(self, flaky: Callable[..., Flaky]) -> None:
        server = flaky(fails(200))
        with patient_client(server.url) as client, pytest.raises(ServiceError, match="Not an answer of Segue"):
            client.play("s", "a")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(503, json=["no object"], headers={"content-type": "application/problem+json"}),
        httpx.Response(503, text="no JSON", headers={"content-type": "application/problem+json"}),
        httpx.Response(503, json={"errors": None}, headers={"content-type": "application/problem+json"}),
        httpx.Response(422, json={"errors": 5, "title": None}, headers={"content-type": "application/problem+json"}),
        *(httpx.Response(200, json=json) for json in (None, [1], {"results": 1}, {"results": [None]}, {})),
        httpx.Response(503, headers=[(b"retry-after", b"\xb2")]),
        httpx.DecodingError("not gzip"),
        httpx.Response(200, text="\ufffd"),
        httpx.ProxyError("refused"),
        httpx.UnsupportedProtocol("no scheme"),
        httpx.LocalProtocolError("too many headers"),
        httpx.TooManyRedirects("endless"),
    ],
    ids=str,
)
def test_an_invalid_response_raises_a_service_error(
    answer: httpx.Response | httpx.HTTPError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def respond(_: httpx.Client, request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        answer.request = request
        answer.read()
        return answer

    async def respond_later(_: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        return respond(httpx.Client(), request)

    async def recommend() -> object:
        async with AsyncClient("http://127.0.0.1:9", deadline_s=0.05) as client:
            return await client.recommend("s")

    monkeypatch.setattr(httpx.Client, "send", respond)
    monkeypatch.setattr(httpx.AsyncClient, "send", respond_later)
    calls: list[Callable[[Client], object]] = [
        lambda client: client.recommend("s"),
        lambda client: client.recommend_batch(["s"]),
        lambda client: client.start_station("s", artists=["a"]),
        lambda client: client.similar("t"),
        lambda client: client.play("s", "t"),
    ]
    for call in calls:
        with Client("http://127.0.0.1:9", deadline_s=0.05) as client, pytest.raises(ServiceError) as caught:
            call(client)
        is_passing = isinstance(answer, httpx.ProxyError)
        assert (type(caught.value) is NoAnswer) == is_passing
        assert caught.value.status == (answer.status_code if isinstance(answer, httpx.Response) else 0)
    with pytest.raises(ServiceError):
        asyncio.run(recommend())


def test_it_imports_neither_the_service_nor_data_frames() -> None:
    program = "import sys, segue.client; print(*{'polars', 'numpy', 'fastapi', 'redis', 'service'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize(
    ("options", "place", "others"),
    [
        (answers.ListOptions, ("paths", "/recommendations", "get", "parameters"), "session_id k listener_id explain"),
        (answers.ListOptions, ("components", "schemas", "WhatIfRequest", "properties"), "events k explain station"),
        (answers.BatchOptions, ("components", "schemas", "BatchRequest", "properties"), "sessions k station"),
        (answers.RankOptions, ("components", "schemas", "RankRequest", "properties"), "candidates session_id events"),
        (
            answers.ReportOptions,
            ("paths", "/sessions/{session_id}/events", "post", "parameters"),
            "session_id recommend",
        ),
    ],
)
def test_options_are_those_that_the_call_has(options: Any, place: tuple[str, ...], others: str) -> None:
    """Another one is a 422, which a type checker should find before."""
    found = functools.reduce(operator.getitem, place, yaml.safe_load(OPENAPI.read_text(encoding="utf-8")))
    names = [one["name"] for one in found] if isinstance(found, list) else found
    assert {*names} == {*options.__optional_keys__, *others.split()}


def test_every_method_is_documented() -> None:
    names = [name for name, value in vars(module._Methods).items() if isinstance(value, module._Method)]
    assert len(names) == 21
    for name in names:
        assert getattr(Client, name).__doc__
        with Client("http://127.0.0.1:1") as client:
            assert getattr(client, name).__doc__ == getattr(Client, name).__doc__
