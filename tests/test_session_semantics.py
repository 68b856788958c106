"""The Redis script against segue.sessions, on the real Redis server; the rules are in docs/session-semantics.md."""

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, ResponseError

from segue.errors import StoreUnavailable
from segue.sessions import (
    MAX_PREFERENCES,
    Event,
    EventType,
    Outcome,
    Play,
    Preferences,
    SessionState,
    Station,
    apply_event,
    apply_preference,
    play,
    plays_of,
    session_of,
    skip,
)
from service.sessions.embedded_redis import embedded_redis
from service.sessions.privacy import BUCKETS, bucket_of
from service.sessions.redis_errors import store_errors
from service.sessions.redis_server import connect
from service.sessions.store import (
    Appended,
    SessionStore,
    erasures_of,
    keys_of,
    lists_of,
    preferences_of,
    stream_of,
)
from service.settings import Settings

_numbers = itertools.count()


class Stores:
    """Stores on one Redis, driven from plain tests: each has the settings that it is asked for."""

    def __init__(self, url: str, runner: asyncio.Runner, *, cluster: bool) -> None:
        self._url = url
        self._cluster = cluster
        self._runner = runner

    def __call__(self, use: Callable[[SessionStore, Any], Coroutine[Any, Any, Any]], **changed: Any) -> Any:
        """What `use` answers, given a store with these settings and a client."""

        async def run() -> Any:
            options = Settings(release=Path("unused"), redis_url=self._url, redis_cluster=self._cluster, **changed)
            async with _client(options) as client:
                return await use(SessionStore(client, options), client)

        return self._runner.run(run())


@contextlib.asynccontextmanager
async def _client(options: Settings) -> "AsyncIterator[Redis | RedisCluster]":
    client = connect(options)
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture(scope="module", params=["embedded", "cluster"])
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with contextlib.ExitStack() as opened:
        if request.param == "cluster":
            url = request.getfixturevalue("redis_cluster")
        else:
            url = opened.enter_context(embedded_redis(tmp_path_factory.mktemp("redis")))
        runner = opened.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))  # as the service
        yield Stores(url, runner, cluster=request.param == "cluster")


@pytest.fixture
def session_id() -> str:
    return new_session()


def new_session() -> str:
    return f"session-{next(_numbers)}"


def appended(stores: Stores, session_id: str, events: list[Event], **changed: Any) -> Appended:
    async def use(store: SessionStore, _: Any) -> Appended:
        return await store.append(session_id, events, with_plays=True)

    answer = stores(use, **changed)
    assert isinstance(answer, Appended)
    return answer


def outcomes(plays: list[Play]) -> list[tuple[str, Outcome, int | None]]:
    return [(one.track_id, one.outcome, one.ms_played) for one in plays]


# Few tracks, so that skips often meet the latest play; one with what separates fields and is special to Lua.
track_ids = st.sampled_from(["a", "b", "%a é|,:", "日本"])
times = st.datetimes(datetime(1960, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
heard = st.none() | st.integers(0, 2**31 - 1)
events = st.builds(Event, type=st.sampled_from(EventType), track_id=track_ids, at=times, ms_played=heard)


listeners = st.none() | st.sampled_from(["ada", "bob"])
stations = st.builds(
    Station,
    tracks=st.lists(track_ids, max_size=2, unique=True).map(tuple),
    artists=st.lists(st.sampled_from(["Ä b", "=U"]), max_size=2, unique=True).map(tuple),
    weight=st.sampled_from([0.0, 0.1, 1.0]),
)
steps = st.lists(st.tuples(st.lists(events, min_size=1, max_size=8), listeners) | stations | st.just(None), max_size=5)


def expected_of(asked: list[Any]) -> SessionState:
    """The session by the reference implementation."""
    plays: list[Play] = []
    preferences = Preferences()
    for step in asked:
        if step is None or isinstance(step, Station):
            preferences.station = step
            continue
        sent, listener = step
        for event in sent:
            apply_event(plays, event)
            apply_preference(preferences, event, with_listener=listener is not None)
        preferences.listener_id = listener or preferences.listener_id
    return SessionState(plays, preferences or None)


@given(asked=steps)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_scripts_make_the_session_that_the_reference_makes(stores: Stores, asked: list[Any]) -> None:
    session_id = new_session()

    async def use(store: SessionStore, client: Any) -> tuple[list[Appended], SessionState, int]:
        answers = []
        for step in asked:
            if step is None or isinstance(step, Station):
                await store.set_station(session_id, step)
            else:
                answers.append(await store.append(session_id, step[0], with_plays=True, listener_id=step[1]))
        return answers, await store.session(session_id), int(await client.pttl(keys_of(session_id)[0]))

    answers, read, expires_ms = stores(use)
    expected = expected_of(asked)
    assert read == expected
    assert (expires_ms > 0) is bool(expected.plays or expected.preferences)
    if answers:
        assert answers[-1].length == len(expected.plays)
        assert answers[-1].plays == expected.plays


@given(sent=st.lists(events, min_size=1, max_size=12), with_plays_first=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_logged_makes_the_same_session(stores: Stores, sent: list[Event], with_plays_first: bool) -> None:
    """Of each position the latest row is the play, also if a dislike changed a play that is not the latest one."""
    session_id = new_session()
    sent = [play("b"), play("a"), play("b"), *sent] if with_plays_first else sent

    async def use(store: SessionStore, client: Any) -> tuple[Any, Any]:
        keys = [stream_of(bucket_of(session_id)), preferences_of(bucket_of(session_id))]
        await client.delete(*keys)
        for start in range(0, len(sent), 3):
            await store.append(session_id, sent[start : start + 3])
        return [fields for _, fields in await client.xrange(keys[0])], [f for _, f in await client.xrange(keys[1])]

    rows, said = stores(use)
    plays = {int(row["position"]): (row["track_id"], row["skipped"] == "1") for row in rows}
    assert [plays[i] for i in range(len(plays))] == [(one.track_id, one.skipped) for one in plays_of(sent)]
    others = [(e.type.value, e.track_id) for e in sent if e.type not in (EventType.PLAY, EventType.SKIP)]
    assert [(one["type"], one["track_id"]) for one in said] == others


def test_the_latest_preferences_are_kept(stores: Stores, session_id: str) -> None:
    async def use(store: SessionStore, _: Any) -> SessionState:
        station = Station(tuple(f"s{i}" for i in range(MAX_PREFERENCES + 5)))
        await store.set_station(session_id, station)
        for number in range(0, MAX_PREFERENCES + 20, 20):
            likes = [Event(type=EventType.LIKE, track_id=f"t{number + i}") for i in range(20)]
            await store.append(session_id, likes)
        await store.append(session_id, [Event(type=EventType.BAN, track_id="x")])
        found: SessionState = await store.session(session_id)
        assert found.preferences is not None
        assert found.preferences.station == station
        return found

    preferences = stores(use).preferences
    assert preferences.likes == [f"t{i}" for i in range(20, MAX_PREFERENCES + 20)]
    assert preferences.bans == ["x"]


def test_the_bans_of_a_listener_outlive_the_session(stores: Stores, session_id: str) -> None:
    listener = f"listener-of-{session_id}"
    ban, unban = (Event(type=kind, track_id="a", event_id=kind) for kind in (EventType.BAN, EventType.UNBAN))
    artist = Event(type=EventType.BAN_ARTIST, track_id="b")

    async def use(store: SessionStore, client: Any) -> None:
        await store.append(session_id, [ban, play("c"), artist], listener_id=listener)
        assert await store.session(session_id) == (
            [Play("c", at_ms=(await store.plays(session_id))[0].at_ms)],
            Preferences(listener_id=listener),
        )
        assert await store.listeners.bans(listener) == (["a"], ["b"])
        await store.erase(session_id)
        assert await store.listeners.bans(listener) == (["a"], ["b"])
        await store.append(session_id, [unban], listener_id=listener)
        await store.append(session_id, [ban], listener_id=listener)  # sent again: the id is known
        assert await store.listeners.bans(listener) == ([], ["b"])
        await store.append(
            new_session(), [ban], listener_id=listener
        )  # the same id in another session is another event
        assert await store.listeners.bans(listener) == (["a"], ["b"])
        await store.append(session_id, [unban.model_copy(update={"event_id": "u2"})], listener_id=listener)
        assert await store.listeners.bans(listener) == ([], ["b"])
        [ids] = [key async for key in client.scan_iter(match=f"*{listener}:event_ids")]
        idle_gap_s = Settings.model_fields["idle_gap_s"].default
        known = await client.zrange(ids, 0, -1, withscores=True)
        await client.zadd(ids, {one: score - 1000 * idle_gap_s for one, score in known})
        await store.append(session_id, [ban], listener_id=listener)  # a new session, which numbers its events again
        assert await store.listeners.bans(listener) == (["a"], ["b"])
        await store.listeners.erase(listener)
        assert await store.listeners.bans(listener) == ([], [])
        assert [key async for key in client.scan_iter(match=f"*{listener}*")] == []

    stores(use)


@given(
    reports=st.lists(
        st.tuples(st.sampled_from(EventType), track_ids, st.none() | st.integers(0, 3)), max_size=25
    ).filter(len)
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_event_id_has_an_effect_once(stores: Stores, reports: list[tuple[EventType, str, int | None]]) -> None:
    sent = [
        Event(type=kind, track_id=track, event_id=None if number is None else f"e{number}")
        for kind, track, number in reports
    ]
    seen: set[str] = set()
    first = []
    for event in sent:
        if event.event_id is None or event.event_id not in seen:
            first.append(event)
        seen.add(event.event_id or "")
    answer = appended(stores, new_session(), sent)
    expected = session_of(first)
    assert outcomes(answer.plays) == outcomes(expected.plays)
    assert answer.session.preferences == expected.preferences
    assert answer.duplicates == len(sent) - len(first)


def test_an_event_without_a_time_happened_when_it_arrived(stores: Stores, session_id: str) -> None:
    before = time.time_ns() // 10**6
    [stored] = appended(stores, session_id, [play("a")]).plays
    assert before <= (stored.at_ms or 0) <= time.time_ns() // 10**6


def test_the_latest_plays_are_kept_and_positions_go_on(stores: Stores, session_id: str) -> None:
    async def use(store: SessionStore, client: Any) -> tuple[list[Play], list[str]]:
        for number in range(7):
            await store.append(session_id, [play(f"t{number}")])
        await store.append(session_id, [skip("t6")])
        entries: Any = await client.xrange(stream_of(bucket_of(session_id)))
        positions = [fields["position"] for _, fields in entries if fields["session_id"].startswith(f"{session_id}@")]
        return await store.plays(session_id), positions

    plays, positions = stores(use, max_session_plays=3)
    assert [(one.track_id, one.skipped) for one in plays] == [("t4", False), ("t5", False), ("t6", True)]
    assert positions == ["0", "1", "2", "3", "4", "5", "6", "6"]


@pytest.mark.parametrize(
    ("before", "after", "position"),
    [
        (["a", "b", "c"], [], 3),
        (["a", "b", "c"], [play("d")], 3),  # the list is logged after the next play
        (["a", "b", "c"], [skip("c"), play("c")], 3),  # the latest play became a skip, and was played again
        (["a", "b", "c"], [play("d"), play("e")], None),  # the latest play is not kept any more
        (["a"], [play("d")], 1),  # all plays were kept when the list was served
        (["a"], [play("d"), play("e")], None),
    ],
)
def test_a_list_has_the_position_of_the_play_after_it(
    stores: Stores, session_id: str, before: list[str], after: list[Event], position: int | None
) -> None:
    async def use(store: SessionStore, client: Any) -> list[Any]:
        plays = (await store.append(session_id, [play(track) for track in before], with_plays=True)).plays
        await asyncio.sleep(0.002)  # the time of a play is part of what finds it
        if after:
            await store.append(session_id, after)
        assert await store.log_list(session_id, len(plays), plays[-1], 1, {"release": "r"}) == 0
        entries = await client.xrange(lists_of(bucket_of(session_id)))
        return [fields for _, fields in entries if fields["session_id"].startswith(f"{session_id}@")]

    logged = stores(use, max_session_plays=2)
    assert [(one["position"], one["at"], one["release"]) for one in logged] == (
        [] if position is None else [(str(position), "1", "r")]
    )


@pytest.mark.parametrize("renewed", ["", "a", "ab", "abc"])
@pytest.mark.parametrize("max_plays", [2, 100])
def test_a_list_of_an_erased_session_does_not_enter_another_of_its_id(
    stores: Stores, session_id: str, renewed: str, max_plays: int
) -> None:
    async def use(store: SessionStore, client: Any) -> list[Any]:
        [*_, latest] = (await store.append(session_id, [play("a"), play("b")], with_plays=True)).plays
        await asyncio.sleep(0.002)
        await store.erase(session_id)
        if renewed:
            await store.append(session_id, [play(track) for track in renewed])
        assert await store.log_list(session_id, 2, latest, 1, {"release": "r"}) == 0
        await store.remember(session_id, latest, "r", ["z"])
        entries = await client.xrange(lists_of(bucket_of(session_id)))
        logged = [fields for _, fields in entries if fields["session_id"].startswith(f"{session_id}@")]
        return [*logged, *(await store.append(session_id, [play("z")])).attributions]

    assert stores(use, max_session_plays=max_plays) == []


@pytest.mark.parametrize("max_plays", [2, 100])
def test_a_list_that_is_stored_late_does_not_replace_a_later_one(
    stores: Stores, session_id: str, max_plays: int
) -> None:
    async def use(store: SessionStore, _: Any) -> list[list[str]]:
        async def played(event: Event) -> tuple[Play, list[str]]:
            await asyncio.sleep(0.002)  # the time of a play is part of what finds it
            answer = await store.append(session_id, [event], with_plays=True)
            return answer.plays[-1], answer.attributions

        first, _none = await played(play("a"))
        second, _none = await played(play("a"))
        await store.remember(session_id, second, "later", ["x", "y"])
        await store.remember(session_id, first, "late", ["x", "y"])
        await store.remember(session_id, None, "before any play", ["x", "y"])
        third, credited = await played(play("x"))
        await store.remember(session_id, third, "third", ["y"])
        await store.remember(session_id, third, "again", ["y"])
        return [credited, (await played(skip("y")))[1]]

    assert stores(use, max_session_plays=max_plays) == [["P\tlater"], ["S\tagain"]]


def test_a_session_is_over_after_the_idle_gap(stores: Stores, session_id: str) -> None:
    """Every report sets the time at which Redis ends the session. The test brings that time forward."""

    async def use(store: SessionStore, client: Any) -> list[int]:
        keys, lengths = keys_of(session_id)[:3], []
        for number in range(4):
            event = Event(type=EventType.PLAY, track_id="a", event_id=f"e{number}")
            lengths.append((await store.append(session_id, [event])).length)
            assert all([300_000 < await client.pttl(key) <= 600_000 for key in keys])
            for key in keys:
                assert await client.pexpire(key, 1 if number == 2 else 300_000)
            while number == 2 and await client.exists(*keys):
                await asyncio.sleep(0.01)
        return lengths

    assert stores(use, idle_gap_s=600) == [1, 2, 3, 1]


def test_erasing_leaves_no_trace_but_the_mark(stores: Stores, session_id: str) -> None:
    async def use(store: SessionStore, client: Any) -> None:
        stream, erasures = stream_of(bucket_of(session_id)), erasures_of(bucket_of(session_id))
        neighbour = next(name for name in map(str, range(10_000)) if bucket_of(name) == bucket_of(session_id))
        await client.delete(stream, erasures, preferences_of(bucket_of(session_id)))
        for _ in range(12):
            await store.append(session_id, [play("secret-track"), skip("secret-track")] * 40)
        like = Event(type=EventType.LIKE, track_id="b")
        await store.append(session_id, [Event(type=EventType.BAN, track_id="secret-track"), like])
        await store.append(neighbour, [play("b"), like])
        await store.erase(session_id)
        await store.erase(session_id)
        assert await store.plays(session_id) == []
        assert [key async for key in client.scan_iter(match=f"*:{session_id}:*")] == []
        entries: Any = await client.xrange(stream)
        found = [fields for _, fields in entries]
        assert [fields["track_id"] for fields in found] == ["b"]
        assert [fields["track_id"] for _, fields in await client.xrange(preferences_of(bucket_of(session_id)))] == ["b"]
        marks = await client.smembers(erasures)
        assert {mark.rpartition("@")[0] for mark in marks} == {session_id}
        assert all(abs(int(mark.rpartition("@")[2]) - time.time() * 1000) < 60_000 for mark in marks)

    stores(use)


def test_nothing_is_logged_when_the_log_is_off(stores: Stores, session_id: str) -> None:
    async def use(store: SessionStore, client: Any) -> int:
        log = [stream_of(bucket_of(session_id)), erasures_of(bucket_of(session_id))]
        await client.delete(*log)
        await store.append(session_id, [play("a")])
        await store.erase(session_id)
        return int(await client.exists(*log))

    assert stores(use, event_log=False) == 0


def test_a_stream_is_capped_and_what_it_drops_is_counted(stores: Stores, session_id: str) -> None:
    async def use(store: SessionStore, client: Any) -> tuple[int, list[int]]:
        stream = stream_of(bucket_of(session_id))
        await client.delete(stream)
        dropped = [(await store.append(session_id, [play("a")] * 100)).dropped for _ in range(20)]
        return int(await client.xlen(stream)), dropped

    length, dropped = stores(use, event_log_stream_max_length=200)
    assert 200 <= length <= 400  # Redis trims whole nodes of 100
    assert sum(dropped) == 2000 - length
    assert dropped[:2] == [0, 0]


def test_an_erasure_is_not_dropped_by_a_full_stream(stores: Stores, session_id: str) -> None:
    async def use(store: SessionStore, client: Any) -> int:
        erasures = erasures_of(bucket_of(session_id))
        await client.delete(erasures)
        await store.append(session_id, [play("a")])
        await store.erase(session_id)
        for _ in range(20):
            await store.append(session_id, [play("a")] * 100)
        return int(await client.scard(erasures))

    assert stores(use, event_log_stream_max_length=200) == 1


def test_all_keys_of_a_session_share_a_slot() -> None:
    for session_id in ("a", "S.-_~9", "x" * 128):
        tags = {key.partition("{")[2].partition("}")[0] for key in keys_of(session_id)}
        assert tags == {f"b{bucket_of(session_id)}"}
        assert 0 <= bucket_of(session_id) < BUCKETS


def test_a_script_that_redis_forgot_is_sent_again(stores: Stores, session_id: str) -> None:
    async def use(store: SessionStore, client: Any) -> int:
        await store.append(session_id, [play("a")])
        await client.script_flush()
        return (await store.append(session_id, [play("b")])).length

    assert stores(use) == 2


def test_a_full_redis_is_unavailable_and_keeps_what_it_has(stores: Stores, session_id: str) -> None:
    async def use(store: SessionStore, client: Any) -> int:
        everywhere = {"target_nodes": RedisCluster.ALL_NODES} if isinstance(client, RedisCluster) else {}
        await store.append(session_id, [play("a")])
        await client.config_set("maxmemory", "1", **everywhere)
        try:
            with pytest.raises(StoreUnavailable, match="the session store is full") as caught:
                await store.append(session_id, [play("b")])
            assert "OOM" in caught.value.reason
        finally:
            await client.config_set("maxmemory", "0", **everywhere)
        return len(await store.plays(session_id))

    assert stores(use) == 1


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "is full"),
        (
            ResponseError("OOM command not allowed when used memory > 'maxmemory'. script: 1, on @user_script"),
            "is full",
        ),
        (
            NoPermissionError("User default has no permissions to run the 'evalsha' command"),
            "denies Segue's user write access",
        ),
        (
            ResponseError("ERR The user executing the script can't run this command or subcommand script: 1"),
            "denies Segue's user write access",
        ),
        (ReadOnlyError("You can't write against a read only replica."), "a read-only replica"),
        (
            ResponseError(
                "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk."
            ),
            "cannot write to its disk",
        ),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), "too few replicas"),
        (ResponseError("LOADING Redis is loading the dataset in memory"), "rejects commands at the moment"),
    ],
)
def test_what_redis_refuses_as_unfit_is_unavailable(error: Exception, text: str) -> None:
    with pytest.raises(StoreUnavailable, match=text) as caught, store_errors():
        raise error
    assert re.fullmatch(rf"([A-Z]+ )?{re.escape(str(error))}", caught.value.reason)


def test_an_error_of_ours_stays_what_it_is() -> None:
    with pytest.raises(ResponseError, match="wrong number"), store_errors():
        raise ResponseError("wrong number of arguments for 'lrange' command")


def test_no_redis_is_unavailable(tmp_path: Path) -> None:
    async def use() -> None:
        options = Settings(release=tmp_path, redis_url=f"unix://{tmp_path}/none.sock")
        async with _client(options) as client:
            await SessionStore(client, options).check()

    with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
        asyncio.run(use())
    assert "none.sock" in caught.value.reason
    assert "none.sock" not in str(caught.value)


def test_times_out_of_the_calendar_are_kept_within_it(stores: Stores, session_id: str) -> None:
    from datetime import timezone

    early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))
    late = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone(timedelta(hours=-14)))
    plays = appended(stores, session_id, [play("a", early), play("b", late)]).plays
    shown = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=one.at_ms or 0) for one in plays]
    assert [time.year for time in shown] == [1, 9999]
