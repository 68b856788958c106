"""Exports that are damaged: JSON, CSV and text of every kind, packed in an archive or not."""

import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any, Final

from segue.errors import InputError
from tests.export_samples import EXPORT_SAMPLES
from tests.fuzzing.files import Files, refused_in_one_line
from tests.fuzzing.mutations import damaged, damaged_json
from training.prepare.options import LogKind
from training.prepare.pipeline import prepare, prepare_options


def _zipped(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"an export/{name}", content)
    return stream.getvalue()


def _tarred(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


_PACKED: Final[dict[str, Callable[[str, bytes], bytes]]] = {
    "": lambda _, content: content,
    ".zip": _zipped,
    ".tar.gz": _tarred,
}


class Exports(Files):
    """What `segue prepare` reads of the services' exports."""

    def prepare(self) -> None:
        """See Files."""
        self._texts: list[tuple[LogKind, str, bytes]] = []
        for number, sample in enumerate(EXPORT_SAMPLES.values()):
            name, content = next(iter(sample.files.items()))
            self._texts.append((sample.kind, name, content.encode()))
            file = self.folder / f"whole{number}"
            file.mkdir()
            (file / name).write_bytes(self._texts[-1][2])
            options = prepare_options(min_session_plays=1)
            report = prepare(sample.kind, [file / name], self.folder / f"out{number}", options)
            assert len(report.dataset.sessions), sample.kind

    def case(self, rng: random.Random) -> str:
        """See Target."""
        kind, name, content = rng.choice(self._texts)
        others = [other for _, _, other in self._texts]
        packing = rng.choice(["", "", *_PACKED])
        if content[:1] == b"[" and rng.random() < 0.6:  # bytes alone would rarely leave it JSON
            content = json.dumps(damaged_json(json.loads(content), rng), ensure_ascii=rng.random() < 0.5).encode()
        elif rng.random() < 0.8:
            content = _PACKED[packing](name, damaged(content, rng, others))
        else:
            content = damaged(_PACKED[packing](name, content), rng)
        file = self.folder / f"{name}{packing}"
        file.write_bytes(content)
        options = prepare_options(min_session_plays=1, max_malformed_pct=rng.choice((5, 100)))
        with refused_in_one_line(InputError) as outcome:
            prepare(kind, [file], self.folder / "out", options, overwrite=(self.folder / "out").exists())
        file.unlink()
        return outcome[0]


TARGETS: Final[dict[str, Any]] = {"exports": Exports}
