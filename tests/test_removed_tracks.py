"""The file of removed tracks: only a restore lifts a takedown, and readers and writers do not overtake each other."""

import asyncio
import json
import threading
import time
from functools import partial
from pathlib import Path

import orjson
import pytest

from segue.errors import NoReleasesFolder, ReleasesUnavailable, TooManyTracks
from service.releases import tracks_file
from service.releases.added import AddedTrack, AddedTracksFile
from service.releases.removed import FILE, RemovedTracks
from tests.stopwatch import until


def changed(tracks: RemovedTracks, track_id: str, *, removed: bool = True) -> bool:
    return asyncio.run(tracks.change(track_id, removed=removed))


def test_two_services_share_a_file(tmp_path: Path) -> None:
    one, other = RemovedTracks(tmp_path), RemovedTracks(tmp_path)
    assert changed(one, "a/%2F é")
    assert changed(other, "b")  # knows of the first one
    assert not changed(one, "b")
    assert set(one.since) == set(RemovedTracks(tmp_path).since) == {"a/%2F é", "b"}
    assert changed(one, "b", removed=False)
    assert not changed(other, "b", removed=False)
    assert set(RemovedTracks(tmp_path).since) == {"a/%2F é"}
    assert [file.name for file in tmp_path.iterdir() if "removed" in file.name and file.suffix == ".json"] == [FILE]


def test_edits_of_a_worker_wait_for_each_other(tmp_path: Path) -> None:
    tracks = RemovedTracks(tmp_path)

    async def remove_all() -> list[bool]:
        return await asyncio.gather(*(tracks.change(f"t{number}", removed=True) for number in range(40)))

    assert asyncio.run(remove_all()) == [True] * 40
    assert len(RemovedTracks(tmp_path).since) == 40


def test_a_change_is_on_the_disk_before_it_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file by its content, and the folder by the new name."""
    flushed: list[Path] = []
    monkeypatch.setattr(tracks_file, "flush", flushed.append)
    changed(RemovedTracks(tmp_path), "a")
    assert flushed == [tmp_path]

    def fail(_: Path) -> None:
        raise OSError(22, "Invalid argument")  # as a network file system may

    monkeypatch.setattr(tracks_file, "flush", fail)
    tracks = RemovedTracks(tmp_path)
    assert changed(tracks, "b")
    assert set(tracks.since) == set(RemovedTracks(tmp_path).since) == {"a", "b"}


def test_without_a_folder_nothing_can_be_removed() -> None:
    with pytest.raises(NoReleasesFolder, match="set SEGUE_RELEASES_DIR"):
        changed(RemovedTracks(None), "a")


@pytest.mark.parametrize("gone", ["file", "folder"])
def test_a_lost_file_lifts_no_takedown(gone: str, tmp_path: Path) -> None:
    folder = tmp_path / "releases"
    folder.mkdir()
    tracks = RemovedTracks(folder)
    changed(tracks, "a")
    (folder / FILE).rename(tmp_path / "kept")
    if gone == "folder":
        folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ReleasesUnavailable, match=r"is gone: the 1 tracks that were removed stay removed|cannot be"):
        changed(tracks, "b")
    assert set(tracks.since) == {"a"}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"removed": 1}', '{"removed": {"a": 1}}', '{"removed": {"\\ud800": "t"}}']
)
def test_a_damaged_file_stops_a_start_and_not_a_service(content: str, tmp_path: Path) -> None:
    running = RemovedTracks(tmp_path)
    changed(running, "a")
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ReleasesUnavailable, match="is damaged"):
        RemovedTracks(tmp_path)
    with pytest.raises(ReleasesUnavailable, match="is damaged"):
        changed(running, "b")
    assert set(running.since) == {"a"}


@pytest.mark.parametrize(
    "content",
    ["{", '{"removed": {}}', '{"added": {"a": 1}}', '{"added": {"a": {"since": "t"}}}']
    + [
        json.dumps({"added": {"a": {"since": "t", "title": None, "artist": None, "attributes": {}, **wrong}}})
        for wrong in ({"embedding": ["x"]}, {"embedding": [1e9]}, {"attributes": 1}, {"neighbours": [1]}, {"x": 1})
    ],
)
def test_so_does_a_damaged_file_of_added_tracks(content: str, tmp_path: Path) -> None:
    track = AddedTrack.now(title="T", artist=None, attributes={"year": 2001}, neighbours=["x"], embedding=[0.5])
    running, other = AddedTracksFile(tmp_path), AddedTracksFile(tmp_path)
    asyncio.run(running.put("a/b", track))
    asyncio.run(other.put("c", track))
    assert AddedTracksFile(tmp_path).tracks == other.tracks == {"a/b": track, "c": track}
    assert asyncio.run(other.delete("c"))
    assert not asyncio.run(running.delete("c"))
    (tmp_path / "added-tracks.json").write_text(content)
    with pytest.raises(ReleasesUnavailable, match="is damaged"):
        AddedTracksFile(tmp_path)
    with pytest.raises(ReleasesUnavailable, match="is damaged"):
        asyncio.run(running.put("b", track))
    assert running.tracks == {"a/b": track}
    (tmp_path / "added-tracks.json").unlink()
    with pytest.raises(ReleasesUnavailable, match="is gone: the 1 tracks that were added stay added here"):
        asyncio.run(running.put("b", track))


def test_their_number_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AddedTracksFile, "most", 2)
    tracks = AddedTracksFile(tmp_path)
    for track_id in ("a", "b", "b"):
        asyncio.run(tracks.put(track_id, AddedTrack.now(title=track_id, artist=None, attributes={})))
    with pytest.raises(TooManyTracks, match="2 tracks are added already: delete those that"):
        asyncio.run(tracks.put("c", AddedTrack.now(title="c", artist=None, attributes={})))
    assert set(tracks.tracks) == set(AddedTracksFile(tmp_path).tracks) == {"a", "b"}


def test_an_older_read_does_not_overtake_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracks = RemovedTracks(tmp_path)
    changed(tracks, "a")
    (tmp_path / FILE).write_text(json.dumps({"removed": {"a": "t", "x": "t"}}))
    loads = orjson.loads

    def slow(content: bytes) -> object:
        time.sleep(0.3)
        return loads(content)

    monkeypatch.setattr(orjson, "loads", slow)
    reader = threading.Thread(target=tracks._read, daemon=True)
    reader.start()
    time.sleep(0.05)
    assert changed(tracks, "b")
    reader.join()
    assert set(tracks.since) == {"a", "x", "b"}


def test_a_change_that_could_not_be_applied_is_applied_later(tmp_path: Path) -> None:
    one = RemovedTracks(tmp_path)
    failures = [MemoryError(), TimeoutError(), OSError()]
    applied: list[set[str]] = []

    def apply() -> None:
        if one.since and failures:
            raise failures.pop()
        applied.append(set(one.since))

    async def follow() -> None:
        leaving = asyncio.Event()
        watching = asyncio.create_task(one.watch(leaving, apply))
        await one.change("a", removed=True)  # by this worker, which then fails to apply it
        await asyncio.to_thread(until, lambda: bool(applied) and applied[-1] == {"a"})
        leaving.set()
        await watching

    asyncio.run(follow())
    assert not failures


def test_changes_of_others_are_followed(tmp_path: Path) -> None:
    one, other = RemovedTracks(tmp_path), RemovedTracks(tmp_path)
    calls: list[set[str]] = []

    def seen(track_id: str) -> bool:
        return bool(calls) and track_id in calls[-1]

    async def follow() -> None:
        leaving = asyncio.Event()
        watching = asyncio.create_task(one.watch(leaving, lambda: calls.append(set(one.since))))
        for track_id in "ab":
            await other.change(track_id, removed=True)
            await asyncio.to_thread(until, partial(seen, track_id))
        leaving.set()
        await watching

    asyncio.run(follow())
    assert calls[-1] == {"a", "b"}
