"""Files that are read: each is damaged in turn, and is refused in one line of the project's own, or read."""

import bz2
import contextlib
import gzip
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import polars as pl
import zstandard

from index.tuning import index_release, read_facts
from segue.catalogue import Catalogue
from segue.errors import BadOption, BadRelease, InputError
from segue.release import Release, ReleaseMetadata, open_release, write_release
from segue.safe_files import read_json
from service.http.keys import Key, new_key, read_keys, write_keys
from service.releases.rankers import OnnxEncoder
from service.releases.trial import validate_in_child
from service.sessions.event_log import SCHEMA, erase_from_files, write_file
from service.settings import Settings, as_environment, read_settings
from tests.datasets import write_dataset
from tests.fuzzing.mutations import damaged, text
from tests.fuzzing.requests import RELEASE
from tests.sealing import sealed
from training.data.dataset import open_dataset
from training.prepare.options import LogKind
from training.prepare.pipeline import prepare


@contextlib.contextmanager
def refused_in_one_line(*errors: type[Exception]) -> Iterator[list[str]]:
    """Gives a list that holds `refused` if one of `errors` was raised; whatever else is raised goes on."""
    outcome = ["read"]
    try:
        yield outcome
    except errors as error:
        told = str(error)
        outcome[0] = "refused"
    else:
        return
    assert told
    assert "\n" not in told, told


class Files:
    """A target whose input is a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        self.prepare()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def prepare(self) -> None:
        """Make what is damaged."""

    def copy(self, source: Path) -> Path:
        """A fresh copy of a folder."""
        path = self.folder / "copy"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source, path)
        return path


class Datasets(Files):
    """What `open_dataset` reads."""

    def prepare(self) -> None:
        """See Files."""
        plays = pl.DataFrame(
            {
                "session_id": [f"s{number // 5}" for number in range(200)],
                "track_id": [f"t{number * 7 % 31}" for number in range(200)],
                "skipped": [number % 3 == 0 for number in range(200)],
                "title": [None if number % 4 else f"Song {number % 31} é" for number in range(200)],
            }
        )
        write_dataset(self.folder / "whole", plays, "tests")

    def case(self, rng: random.Random) -> str:
        """See Target."""
        path = self.copy(self.folder / "whole")
        file = path / rng.choice(("sessions.parquet", "catalogue.parquet", "dataset.json"))
        file.write_bytes(damaged(file.read_bytes(), rng))
        with refused_in_one_line(InputError) as outcome:
            dataset = open_dataset(path)
            assert len(dataset.sessions) == len(dataset.session_ids)
        return outcome[0]


_EVENTS: Final = "session_id,position,track_id,skipped,timestamp,title,ms_played,written_at\n" + "".join(
    f's{number // 6},{number % 6},"t,{number % 11}",{str(number % 3 == 0).lower()},2026-01-01T00:{number % 60:02}:00Z,'
    f'"A ""song"" {number}",{number * 100},2026-01-01T01:{number % 60:02}:00.5Z\n'
    for number in range(60)
)
_LISTENERS: Final = "user_id,timestamp,track_id,artist\n" + "".join(
    f"u{number // 20},{1_700_000_000 + number * 200},t{number % 11},Ä {number % 3}\n" for number in range(60)
)
_LFM1K: Final = "".join(
    f"u{number // 30}\t2009-05-04T{10 + number // 30}:{number % 60:02}:{number % 3 * 15:02}Z\t"
    f"\tArtist\tm{number % 9}\tTitle {number % 9}\n"
    for number in (*range(30), *range(30, 60, 2), 31)
)
_MSSD: Final = "session_id,session_position,session_length,track_id_clean,skip_1,skip_2,skip_3,not_skipped\n" + "".join(
    f"s{number // 10},{number % 10 + 1},10,t{number % 13},false,{str(number % 2 == 0).lower()},true,false\n"
    for number in range(60)
)
_LFM2B: Final = "user_id\ttrack_id\talbum_id\ttimestamp\n" + "".join(
    f"u{number // 30}\tt{number % 9}\ta\t2020-01-01 00:{number % 60:02}:00\n" for number in range(60)
)
_PACKED: Final[dict[str, Callable[[bytes], bytes]]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


class Logs(Files):
    """What `segue prepare` reads: text of every kind, packed or not, and Parquet."""

    def prepare(self) -> None:
        """See Files."""
        events = pl.read_csv(_EVENTS.encode())
        yambda = pl.DataFrame(
            {
                "uid": pl.Series([number // 20 for number in range(60)], dtype=pl.UInt32),
                "timestamp": pl.Series([number * 5 for number in range(60)], dtype=pl.UInt32),
                "item_id": pl.Series([number % 9 for number in range(60)], dtype=pl.UInt32),
                "played_ratio_pct": pl.Series([number % 101 for number in range(60)], dtype=pl.UInt16),
                "track_length_seconds": pl.Series([200] * 60, dtype=pl.UInt32),
                "is_organic": pl.Series([1] * 60, dtype=pl.UInt8),
            }
        )
        self._texts: list[tuple[LogKind, str, bytes]] = [
            *(("events", ".csv", one.encode()) for one in (_EVENTS, _LISTENERS)),
            ("lfm1k", ".tsv", _LFM1K.encode()),
            ("mssd", ".csv", _MSSD.encode()),
            ("lfm2b", ".tsv", _LFM2B.encode()),
            *(("events", ".parquet", _parquet(events)) for _ in range(2)),
            ("yambda", ".parquet", _parquet(yambda)),
        ]
        for number, (kind, suffix, content) in enumerate(self._texts):
            file = self.folder / f"whole{number}{suffix}"
            file.write_bytes(content)
            assert len(prepare(kind, [file], self.folder / f"out{number}").dataset.sessions), kind

    def case(self, rng: random.Random) -> str:
        """See Target."""
        kind, suffix, content = rng.choice(self._texts)
        others = [other for of_kind, of_suffix, other in self._texts if of_suffix == suffix]
        packing = rng.choice(list(_PACKED)) if suffix != ".parquet" else ""
        if rng.random() < 0.7:
            content = _PACKED[packing](damaged(content, rng, others))
        else:
            content = damaged(_PACKED[packing](content), rng)
        file = self.folder / f"log{suffix}{packing}"
        file.write_bytes(content)
        with refused_in_one_line(InputError) as outcome:
            prepare(kind, [file], self.folder / "out", overwrite=(self.folder / "out").exists())
        return outcome[0]


def _parquet(frame: pl.DataFrame) -> bytes:
    stream = io.BytesIO()
    frame.write_parquet(stream)
    return stream.getvalue()


class Releases(Files):
    """What `open_release` reads, encoder and index aside: hashes fit, so that each file is looked at for itself."""

    def prepare(self) -> None:
        """See Files."""
        frozen = open_release(RELEASE)
        draft = ReleaseMetadata(**{name: getattr(frozen.manifest, name) for name in ReleaseMetadata.model_fields})
        places = np.linspace(-1, 1, 130, dtype=np.float32).reshape(65, 2)
        arrays = {"item_embeddings.npy": frozen.item_embeddings[:65], "map.npy": places}
        encoder = (RELEASE / "encoder.onnx").read_bytes()
        write_release(
            self.folder / "whole", draft, Catalogue.from_frame(frozen.catalogue.frame.head(64)), arrays, encoder
        )
        facts = {"kind": "exact", "device": "cpu", "parameters": {}, "recall_target": 0.99, "recall": 1, "recall_k": 20}
        facts |= {"queries": 1, "search_ms": 1, "exact_ms": 1, "build_s": 0, "seed": 0, "tracks": 64, "dimension": 16}
        (self.folder / "whole" / "index.json").write_text(json.dumps(facts))
        sealed(self.folder / "whole")
        self._names = sorted(file.name for file in (self.folder / "whole").iterdir() if file.suffix != ".onnx")

    def case(self, rng: random.Random) -> str:
        """See Target."""
        path = self.copy(self.folder / "whole")
        for _ in range(rng.choice((1, 1, 2))):
            file = path / rng.choice(self._names)
            file.write_bytes(damaged(file.read_bytes(), rng))
        with contextlib.suppress(ValueError):  # of a manifest that is no JSON
            sealed(path)
        with refused_in_one_line(InputError) as outcome:
            release = open_release(path)
            read_facts(release)
            _look_around(release)
        return outcome[0]


def _look_around(release: Release) -> None:
    """What requests do with a catalogue that was let through."""
    catalogue = release.mapped_catalogue
    for row in (1, len(catalogue) // 2, len(catalogue)):
        if 0 < row <= len(catalogue):
            catalogue.json(row)
    catalogue.rows(["nobody", ""])
    catalogue.search("a", 20)
    float(np.nansum(release.item_embeddings[:2]))
    if release.track_map is not None:
        assert np.abs(release.track_map).max() <= 1


class _Tried(Files):
    """A file that C++ reads: in the trial's own process, which it may end."""

    name: str
    limit_s = 15.0

    def case(self, rng: random.Random) -> str:
        """See Target."""
        path = self.copy(self.folder / "whole")
        file = path / self.name
        file.write_bytes(damaged(file.read_bytes(), rng))
        sealed(path)
        outcome = "read"
        try:
            validate_in_child(path, self.limit_s)
        except BadRelease as error:
            line = str(error)
            assert "\n" not in line
            outcome = "ended" if "ends the process" in line else "hung" if "does not answer" in line else "refused"
        return outcome


class Encoders(_Tried):
    """`encoder.onnx`, as ONNX Runtime reads it."""

    name = "encoder.onnx"

    def prepare(self) -> None:
        """See Files."""
        shutil.copytree(RELEASE, self.folder / "whole")


class Indexes(_Tried):
    """`index.faiss`, as FAISS reads it."""

    name = "index.faiss"

    def prepare(self) -> None:
        """See Files."""
        self._kinds = ("flat", "flat-sq8", "ivf", "ivf-sq8", "ivf-pq4", "hnsw", "hnsw-sq8")
        for kind in self._kinds:
            path = self.folder / kind
            shutil.copytree(RELEASE, path)
            release = open_release(path)
            queries = OnnxEncoder(path / "encoder.onnx").encode(release.sample_windows)[:50]
            index_release(release, queries, kind, recall_target=0.05)

    def case(self, rng: random.Random) -> str:
        """See Target."""
        shutil.rmtree(self.folder / "whole", ignore_errors=True)
        shutil.copytree(self.folder / rng.choice(self._kinds), self.folder / "whole")
        return super().case(rng)


class EventLogs(Files):
    """Files of the event log, from which a listener is erased: a damaged one stops nobody's erasure elsewhere."""

    def prepare(self) -> None:
        """See Files."""
        (self.folder / "events").mkdir()
        rows = [
            (f"s{number % 4}@1", number, f"t{number}", number % 2 == 0, 10**12, None, 10**15) for number in range(40)
        ]
        assert len(rows[0]) == len(SCHEMA)
        path = write_file(self.folder / "events", rows)
        self._name, self._content = path.name, path.read_bytes()

    def case(self, rng: random.Random) -> str:
        """See Target."""
        for file in (self.folder / "events").iterdir():
            file.unlink()
        wrong = self.folder / "events" / self._name
        wrong.write_bytes(damaged(self._content, rng))
        right = self.folder / "events" / "events-of-before.parquet"
        right.write_bytes(self._content)
        erase_from_files(self.folder / "events", ["s1@1"])
        assert not right.exists()
        for path in (self.folder / "events").iterdir():
            if path != wrong:
                left = pl.read_parquet(path, memory_map=False)["session_id"].unique().to_list()
                assert sorted(left) == ["s0@1", "s2@1", "s3@1"]
        return "damaged" if wrong.exists() else "erased"


class KeysFiles(Files):
    """The file of API keys."""

    def prepare(self) -> None:
        """See Files."""
        kept: list[Key] = [new_key(f"k{number}", ["client", "read"])[1] for number in range(3)]
        write_keys(self.folder / "whole.toml", kept)
        self._content = (self.folder / "whole.toml").read_bytes()

    def case(self, rng: random.Random) -> str:
        """See Target."""
        file = self.folder / "keys.toml"
        file.write_bytes(damaged(self._content, rng))
        with refused_in_one_line(BadOption) as outcome:
            read_keys(file)
        return outcome[0]


class JsonFiles(Files):
    """Any JSON that Segue reads strictly."""

    def case(self, rng: random.Random) -> str:
        """See Target."""
        file = self.folder / "any.json"
        file.write_bytes(damaged((RELEASE / "manifest.json").read_bytes(), rng))
        with refused_in_one_line(ValueError) as outcome:
            read_json(file)
        return outcome[0]


class Environments(Files):
    """Settings from the environment."""

    def prepare(self) -> None:
        """See Files."""
        settings = Settings(
            release=RELEASE,
            redis_url="rediss://u:secret@h:1/0",
            experiment=("a", 0.5),
            allowed_hosts=("a.b",),
            session_rate_limit=5,
        )
        self._whole = as_environment(settings)

    def case(self, rng: random.Random) -> str:
        """See Target."""
        given = dict(self._whole)
        for name in rng.sample(sorted(given), rng.choice((1, 1, 2))):
            value = (
                damaged(given[name].encode(), rng)
                if rng.random() < 0.7
                else text(rng, "0123456789.-e,:/é \n", 40).encode()
            )
            given[name] = value.replace(b"\0", b"0").decode("utf-8", "surrogateescape")
        self._clear()
        os.environ.update(given)
        with refused_in_one_line(BadOption) as outcome:
            found = read_settings()
            os.environ.update({name: value for name, value in as_environment(found).items() if "\0" not in value})
            assert read_settings() == found, given
        return outcome[0]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See Target."""
        self._clear()

    def _clear(self) -> None:
        for name in [name for name in os.environ if name.startswith("SEGUE_")]:
            del os.environ[name]


TARGETS: Final[dict[str, Any]] = {
    "datasets": Datasets,
    "logs": Logs,
    "releases": Releases,
    "encoders": Encoders,
    "indexes": Indexes,
    "event-logs": EventLogs,
    "keys": KeysFiles,
    "json": JsonFiles,
    "settings": Environments,
}
