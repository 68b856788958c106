"""The releases of one worker, without HTTP: what is freed, what is followed, who is drawn."""

import asyncio
import gc
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segue.errors import BadOption, EndsExperiment, SwapRefused
from segue.release import Release
from segue.sessions import Play
from service.releases.experiment import SessionSampler
from service.releases.loaded import Question
from service.releases.registry import ReleaseRegistry
from service.sessions.privacy import bucket_of
from service.settings import Settings, as_environment, read_settings
from service.telemetry import Telemetry
from service.threads import Threads
from tests.conftest import write_tiny_release

SESSIONS = [f"session-{number}" for number in range(20_000)]


def opened(releases_dir: Path, **settings: Any) -> ReleaseRegistry:
    given = {"release": releases_dir / "first", "releases_dir": releases_dir, **settings}
    return ReleaseRegistry(Settings(**given), Threads(1), Telemetry())


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class TestSwapping:
    def test_a_replaced_release_ends_with_its_last_request(self, releases_dir: Path, no_collector: None) -> None:
        """At once and without the garbage collector, which a service hardly ever calls."""
        releases = opened(releases_dir)

        async def use() -> None:
            request = releases.current
            gone = weakref.ref(request.live), weakref.ref(request.live.catalogue)
            await request.ranking(Question([Play("g1-t00")], 5))
            await releases.swap("second")
            answer = await request.ranking(Question([Play("g1-t00")], 5))  # under way when it was replaced
            assert [track.track_id[:2] for track in answer.tracks] == ["g1"] * 5
            del request, answer
            for _ in range(100):  # the thread that ranked may still be putting its work away
                if not any(ref() for ref in gone):
                    return
                await asyncio.sleep(0.02)
            raise AssertionError("the replaced release is kept")

        asyncio.run(use())

    def test_a_release_serves_on_when_its_folder_is_taken_away(self, releases_dir: Path) -> None:
        releases = opened(releases_dir)
        shutil.rmtree(releases_dir / "first")
        shutil.copytree(releases_dir / "second", releases_dir / "first")
        live = releases.current.live
        assert live.index_facts == {"kind": "exact"}
        assert [track.track_id for track in live.search("song", 2)] == ["g0-t00", "g0-t01"]
        assert [track.track_id for track in live.similar("g1-t00", 2)] == ["g1-t01", "g1-t02"]

    def test_two_at_once_are_one_too_many(self, releases_dir: Path) -> None:
        releases = opened(releases_dir)

        async def use() -> None:
            results = await asyncio.gather(releases.swap("second"), releases.swap("second"), return_exceptions=True)
            assert [type(result).__name__ for result in results] == ["ActiveRelease", "SwapRefused"]
            await releases.swap("first")

        asyncio.run(use())

    def test_a_pointer_that_cannot_be_written_changes_nothing(self, releases_dir: Path) -> None:
        releases = opened(releases_dir)
        (releases_dir / "current").mkdir()  # as root, permissions stop nobody
        with pytest.raises(Exception, match="current cannot be written") as caught:
            asyncio.run(releases.swap("second"))
        assert getattr(caught.value, "http_status", 0) == 503
        assert releases.current.live.folder == "first"
        assert [path.name for path in releases_dir.glob(".current.*")] == [".current.lock"]

    def test_a_folder_that_is_not_there_is_told(self, releases_dir: Path) -> None:
        with pytest.raises(BadOption, match=r"SEGUE_RELEASES_DIR is .*which is not a folder"):
            opened(releases_dir / "nowhere")

    def test_without_a_folder_there_is_no_swap_and_no_experiment(self, tiny_release: Release) -> None:
        settings = Settings(release=tiny_release.path)
        with pytest.raises(SwapRefused, match="SEGUE_RELEASES_DIR"):
            asyncio.run(ReleaseRegistry(settings, Threads(1), Telemetry()).swap("first"))
        with pytest.raises(BadOption, match="SEGUE_RELEASES_DIR"):
            ReleaseRegistry(settings.model_copy(update={"experiment": ("second", 0.5)}), Threads(1), Telemetry())


class TestFollowing:
    def follow(self, releases: ReleaseRegistry, rounds: int = 1) -> str:
        async def use() -> str:
            for _ in range(rounds):
                leaving = asyncio.Event()
                task = asyncio.create_task(releases.watch(leaving))
                await asyncio.sleep(0.05)
                leaving.set()
                await task
            return releases.current.live.folder

        return asyncio.run(use())

    def test_an_empty_or_strange_pointer_changes_nothing(self, releases_dir: Path) -> None:
        releases = opened(releases_dir)
        for content in (b"", b"\n", b"\xff\xfe", b"../first", b"/etc", b"second/../second", b"x" * 10_000, b"current"):
            (releases_dir / "current").write_bytes(content)
            assert self.follow(releases) == "first"

    def test_a_release_that_is_indexed_anew_is_opened_anew(self, releases_dir: Path) -> None:
        (releases_dir / "current").write_text("first")
        releases = opened(releases_dir)
        before = releases.current
        assert self.follow(releases, rounds=3) == "first"
        assert releases.current is before
        os.utime(releases_dir / "first" / "manifest.json")
        self.follow(releases)
        assert releases.current is not before

    def test_a_look_that_a_swap_overtakes_is_forgotten(
        self, releases_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A slow disk answers a look with the pointer before the one that this worker has just written."""
        releases = opened(releases_dir)
        (releases_dir / "current").write_text("first")

        async def use() -> None:
            folder = releases._folder
            assert folder is not None
            stale = folder.look()
            looked = asyncio.Event()

            asked: list[Any] = []

            async def slow(function: Any) -> Any:
                asked.append(function)
                await looked.wait()
                return stale

            monkeypatch.setattr(releases, "_reading", slow)
            following = asyncio.create_task(releases._follow(folder))
            await asyncio.sleep(0)
            assert asked == [folder.look]
            await releases.swap("second")
            looked.set()
            await following
            assert releases.current.live.folder == "second"

        asyncio.run(use())


class TestExperiments:
    def test_a_session_keeps_its_release_through_swaps_of_the_other(self, releases_dir: Path) -> None:
        releases = opened(releases_dir, experiment=("second", 0.3))
        challenged = {session for session in SESSIONS if releases.for_session(session).live.folder == "second"}
        assert 0.28 < len(challenged) / len(SESSIONS) < 0.32
        shutil.copytree(releases_dir / "first", releases_dir / "third")
        asyncio.run(releases.swap("third"))
        again = {session for session in SESSIONS if releases.for_session(session).live.folder == "second"}
        assert again == challenged

    def test_only_a_swap_that_says_so_ends_it(self, releases_dir: Path) -> None:
        write_tiny_release(releases_dir / "third", "y-")
        releases = opened(releases_dir, experiment=("second", 0.5))
        for target in ("second", "third"):
            with pytest.raises(EndsExperiment, match=f"A swap to {target} would end it"):
                asyncio.run(releases.swap(target))
        asyncio.run(releases.swap("third", end_experiment=True))
        again = opened(releases_dir, experiment=("second", 0.5))  # after a restart
        for registry in (releases, again):
            test = registry.experiment()
            assert test is not None
            assert (test.state, test.reason) == ("ended", "a swap to third ended it")
            assert {registry.for_session(session).live.folder for session in SESSIONS[:50]} == {"third"}
            assert [(one.live.folder, share) for one, share in registry.live()] == [("third", 1.0), ("second", 0.0)]

    @pytest.mark.parametrize(("share", "expected"), [(0, 0), (1, len(SESSIONS))])
    def test_nobody_and_everybody(self, share: float, expected: int) -> None:
        draw = SessionSampler("all or none", share)
        assert sum(session in draw for session in SESSIONS) == expected

    def test_a_larger_share_keeps_the_sessions_of_a_smaller_one(self) -> None:
        small, large = SessionSampler("experiment a", 0.1), SessionSampler("experiment a", 0.2)
        assert all(session in large for session in SESSIONS if session in small)

    def test_draws_are_independent_of_each_other_and_of_the_buckets(self) -> None:
        one, other = SessionSampler("experiment a", 0.5), SessionSampler("credits", 0.5)
        both = sum(session in one and session in other for session in SESSIONS)
        assert both == pytest.approx(len(SESSIONS) / 4, rel=0.05)
        of_bucket = [session for session in SESSIONS if bucket_of(session) % 2]
        drawn = sum(session in one for session in of_bucket)
        assert drawn == pytest.approx(len(of_bucket) / 2, rel=0.05)

    def test_a_draw_never_changes(self) -> None:
        """These were drawn once: a listener must not change sides with a new version of Segue."""
        draw = SessionSampler("experiment a", 0.5)
        assert [number for number, session in enumerate(SESSIONS[:20]) if session in draw] == [
            2,
            4,
            8,
            9,
            10,
            12,
            13,
            16,
            18,
        ]

    @pytest.mark.parametrize(
        "text", ["", "second", "second:", ":0.5", "second:1.5", "second:-1", "a/b:0.5", "second:nan", "second:0,5"]
    )
    def test_a_wrong_experiment_is_told(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SEGUE_EXPERIMENT", text)
        with pytest.raises(BadOption, match=r"experiment is .*expected folder:share") as caught:
            read_settings(release="r")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "share"), [("a:0", 0.0), ("a:1", 1.0), ("a:.5", 0.5), ("a:0.125", 0.125), ("a:0.00001", 0.00001)]
    )
    def test_a_right_one_is_read_by_workers_too(self, text: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SEGUE_EXPERIMENT", text)
        settings = read_settings(release="r")
        assert settings.experiment == ("a", share)
        monkeypatch.setenv("SEGUE_EXPERIMENT", as_environment(settings)["SEGUE_EXPERIMENT"])
        assert read_settings(release="r").experiment == ("a", share)
