"""`segue prepare` itself, on the logs of tests/log_cases with other values, bytes, names and options.

It writes a dataset, or says in one or two lines why not, and leaves nothing else. What it prints can be printed: a log
cannot control the terminal.
"""

import contextlib
import io
import os
import random
import re
import shlex
import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import polars as pl

from segue.cli import main
from tests.fuzzing.files import Files
from tests.fuzzing.mutations import damaged
from tests.log_cases import CASES
from tests.log_cases.history import Content
from training.data.dataset import open_dataset
from training.prepare import disk_engine as disk
from training.prepare.options import LogKind

_TEXTS: Final = (
    *("", " ", "\0", "nan", "NULL", "\\N", "-", "0", "-1", "1.0", "1e308", "-1e999", "9" * 40, "0x10", "1_000", "true"),
    *("9223372036854775807", "18446744073709551616", "1709287200", "1709287200000000000", "99999999999999", "T"),
    *("-62135596801", "2024-02-30T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999+14:00", "24:00"),
    *("2024-03-01 10:00:00 EST", "2024-03-01T10:00:00+99:99", "+262143-01-01T00:00:00Z", "20240301250000", "\ufeff"),
    *("Fri, 31 Feb 2024 10:00:00 GMT", "01 Mrz 2024", "\x1b[2J\x1b]0;title\x07", "a\tb", "a\nb", '"', '""', "'", "["),
    *("{}", '{"a": 1}', "\u202e\u2028", "é" * 300),
)  # fmt: skip
_VALUES: Final[tuple[Any, ...]] = (
    *_TEXTS,
    *(None, True, False, 0, -1, 2**31, 2**53, 2**63 - 1, -(2**63), 0.5, -0.0, 1e300, float("nan"), float("inf")),
    *(Decimal("1.5"), Decimal(7), date(2024, 3, 1), datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)),
    *([1], [], {"a": 1}, b"\xff\0", b"a"),
)  # fmt: skip
_OPTIONS: Final = (
    *("", "", "", "", "--max-malformed 100", "--max-malformed 100", "--no-skips", "--skip-after 1", "--merge-within 2"),
    *("--encoding latin-1", "--encoding utf-16", "--time-format %Y", "--time-format '%d.%m.%Y %H:%M'"),
    *("--min-track-plays 2", "--time-zone Europe/Berlin", "--timestamp-is end"),
    *("--skip-below-seconds 30", "--skip-below-ratio 50"),
    *("--where user_id=u1", "--where-not track_id=", "--where-not user.id=1 --where title=a"),
    *("--columns track_id=title", "--columns timestamp=user_id", "--columns skipped=position", "--include-private"),
)  # fmt: skip
_NAMES: Final = (
    "plays.csv",
    "plays",
    "plays.json",
    "plays.parquet",
    "plays.csv.gz",
    "pl\x1b[2Jays.csv",
    "pl\nays.csv",
    "é\u202e.tsv",
)


class LogCommands(Files):
    """The command."""

    def prepare(self) -> None:
        """See Files."""
        self._cases = list(CASES.values())
        self._printed = (self.folder / "printed").open("w+b")

    def case(self, rng: random.Random) -> str:
        """See Target."""
        case = rng.choice(self._cases)
        shutil.rmtree(self.folder / "log", ignore_errors=True)
        changed = rng.choice(list(case.files))
        sources = [str(self.folder / "log" / name) for name in case.sources or case.files]
        for name, content in case.files.items():
            path = self.folder / "log" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name == changed and not case.sources and rng.random() < 0.1:
                place = sources.index(str(path))
                path = path.with_name(rng.choice(_NAMES))
                sources[place] = str(path)
            path.write_bytes(_harmed(content, rng) if name == changed else _bytes(content))
        kind = case.kind if rng.random() < 0.8 else rng.choice(get_args(LogKind))
        other = "" if rng.random() < 0.5 else "--max-malformed 100" if rng.random() < 0.7 else rng.choice(_OPTIONS)
        options = [*shlex.split(case.options), *shlex.split(other), "--min-session-plays", "1"]
        engine = disk.disk_engine
        if rng.random() < 0.5:
            options += ["--engine", "disk"]
            split_bytes = rng.choice((60, 300, 5_000))
            disk.disk_engine = partial(engine, split_bytes)
        if rng.random() < 0.3:
            options.append("--json")
        before = set(self.folder.iterdir())
        try:
            code, printed = self._run(["prepare", kind, *sources, *options, "--out", str(self.folder / "out")])
        finally:
            disk.disk_engine = engine
        return self._judged(code, printed, before)

    def _run(self, words: list[str]) -> tuple[int, str]:
        self._printed.seek(0)
        self._printed.truncate()
        with _to(self._printed.fileno()):
            code = main(words)
        self._printed.seek(0)
        return code, self._printed.read().decode()

    def _judged(self, code: int, printed: str, before: set[Path]) -> str:
        assert all(line.replace("\t", "").isprintable() for line in printed.split("\n")), printed
        assert not re.search("Traceback|panicked|unwrap|polars", printed), printed
        left = set(self.folder.iterdir()) - before
        if code == 0:
            assert left == {self.folder / "out"}, left
            assert len(open_dataset(self.folder / "out").sessions)
            shutil.rmtree(self.folder / "out")
            return "read"
        assert code == 2, code
        assert not left, left
        assert 1 <= len(printed.strip().split("\n")) <= 2, printed
        return "refused"


@contextlib.contextmanager
def _to(file: int) -> Iterator[None]:
    """Standard output and error go to a file, and so does what native code prints."""
    kept = os.dup(1), os.dup(2)
    with os.fdopen(os.dup(file), "w", encoding="utf-8") as stream:
        os.dup2(file, 1)
        os.dup2(file, 2)
        try:
            with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                yield
        finally:
            for number, copy in enumerate(kept, start=1):
                os.dup2(copy, number)
                os.close(copy)


def _bytes(content: Content) -> bytes:
    if isinstance(content, list):
        return _parquet(content)
    return content if isinstance(content, bytes) else content.encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pl.DataFrame(rows, infer_schema_length=None, strict=False).write_parquet(stream)
    return stream.getvalue()


def _harmed(content: Content, rng: random.Random) -> bytes:
    """The content with other values, or other bytes."""
    if isinstance(content, list):
        rows = [dict(row) for row in content]
        name, some = rng.choice(list(rows[0])), rng.random() < 0.5
        value = rng.choice(_VALUES)
        for row in rng.sample(rows, 1) if some else rows:
            row[name] = value
        with contextlib.suppress(pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
            return _parquet(rows)
        return damaged(_bytes(content), rng)
    if isinstance(content, bytes) or rng.random() < 0.4:
        return damaged(_bytes(content), rng)
    fields = re.split(r"([,;|\t\n:\"])", content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        fields[rng.randrange(len(fields))] = rng.choice(_TEXTS)
    return "".join(fields).encode()


TARGETS: Final[dict[str, Any]] = {"log-commands": LogCommands}
