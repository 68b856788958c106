"""Read JSON as a table: one object a line, an array of objects, or an object with one list of objects.

Every field becomes a column of text: a number or a Boolean as JSON writes it (1.0 as 1), a list or an object without
known fields as JSON. Fields of nested objects have dotted names. JSON null and a missing field are null.

JSON of the second and third form is converted to lines block by block, so memory holds one block of it.
"""

import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

import polars as pl

from segue.errors import BadLog
from training.prepare.content import PlainFile
from training.prepare.delimited import not_utf8, scan_blocks

VALID: Final = "\x00object"  # the column that says whether a line is a JSON object
TEXT: Final = "\x00text"  # the column that says whether all names and values of a line are text
NOT_A_TEXT: Final = "is not a text: it has half a character, such as \\ud800"

_BLOCK_BYTES: Final = 4 << 20
_DECODERS: Final = 2  # threads; Polars decodes each block with several threads, but other work in between with one
_MAX_OBJECT: Final = 64 << 20  # of one object, in bytes or characters
_SAMPLES: Final = 64  # blocks of lines whose fields are the columns, spread over a file of any size
_SAMPLE_BYTES: Final = 64 << 10
_MAX_DEPTH: Final = 8
_MAX_COLUMNS: Final = 2000
SURROGATE: Final = re.compile("[\ud800-\udfff]")  # half a character, which JSON can have and text cannot
_ESCAPED: Final = re.compile(rb"\\u[dD][89a-fA-F]")
# The escapes of JSON, of which the group is half a character.
_ESCAPES: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)


@dataclass
class Shape:
    """The types of the values of a field (str, bool, int, float, list, dict), and the shapes of its own fields."""

    types: set[type] = field(default_factory=set)
    fields: dict[str, "Shape"] = field(default_factory=dict)

    def add(self, value: object, depth: int = 0) -> None:
        """Include a value."""
        if value is None:
            return
        self.types.add(type(value))
        if not isinstance(value, dict) or depth == _MAX_DEPTH:
            return
        for name, inner in value.items():
            field_ = self.fields.get(name)
            if field_ is None:
                if len(self.fields) == _MAX_COLUMNS or SURROGATE.search(name):
                    continue
                field_ = self.fields[name] = Shape()
            if type(inner) not in field_.types or type(inner) is dict:  # most values tell nothing new
                field_.add(inner, depth + 1)

    def dtype(self) -> pl.DataType:
        """The type of the column."""
        if not self.fields:
            return pl.String()
        return pl.Struct({name: inner.dtype() for name, inner in self.fields.items()})

    def leaves(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], "Shape"]]:
        """The fields without fields, with the path to each."""
        for name, inner in self.fields.items():
            if inner.fields:
                yield from inner.leaves((*path, name))
            else:
                yield (*path, name), inner


def shape_of(plain: PlainFile) -> Shape:
    """The shape of the objects of a file: of all in an array, of a sample of JSON Lines. Raises BadLog."""
    shape = Shape()
    try:
        for line in _elements(plain) if plain.content == "json" else _sample(plain.path):
            value = _parsed(line)[0]
            if isinstance(value, dict):
                shape.add(value)
        if dict not in shape.types:  # a slice can lack objects
            for line in plain.first_lines.splitlines():
                shape.add(value if isinstance(value := _parsed(line)[0], dict) else None)
    except UnicodeDecodeError as error:
        raise not_utf8(plain) from error
    return shape


def json_frame(plain: PlainFile, columns: dict[str, tuple[str, ...]]) -> pl.LazyFrame:
    """The objects of a file as rows.

    Args:
        plain: The file.
        columns: The names of the columns, with the path to each of them.

    """
    schema: dict[str, Any] = {**dict.fromkeys(columns, pl.String), VALID: pl.Boolean, TEXT: pl.Boolean}

    def blocks(names: list[str], first: bool) -> Iterator[pl.DataFrame]:
        paths = {name: columns[name] for name in names if name in columns}
        return _frames(plain, paths, ahead=0 if first else _DECODERS)

    return scan_blocks(plain, schema, blocks)


def _frames(plain: PlainFile, columns: dict[str, tuple[str, ...]], ahead: int) -> Iterator[pl.DataFrame]:
    """The blocks of a file, of which `ahead` are decoded before they are needed."""
    with ThreadPoolExecutor(_DECODERS) as pool:
        pending = deque[Future[pl.DataFrame]]()
        try:
            for block in _blocks(plain):
                pending.append(pool.submit(_decoded, block, columns))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for frame in pending:
                frame.cancel()


def begins_with_lines(path: Path) -> bool:
    """Whether the first line is a JSON object, and other lines follow, of which the second one may be broken."""
    with path.open("rb") as stream:
        first = stream.readline(_SAMPLE_BYTES)
        if not first.lstrip().startswith(b"{") or not stream.read(_SAMPLE_BYTES).strip():
            return False
    try:
        return isinstance(_parsed(first)[0], dict)
    except UnicodeDecodeError:
        return False


def line_numbers(path: Path, rows: Sequence[int]) -> list[int]:
    """The numbers of the lines, from 1, with these objects, in ascending order."""
    found, wanted, row = [], iter(rows), -1
    current = next(wanted, None)
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            row += not line.isspace()
            while current == row and not line.isspace():
                found.append(number)
                current = next(wanted, None)
            if current is None:
                break
    return found


def _decoded(block: bytes, columns: dict[str, tuple[str, ...]]) -> pl.DataFrame:
    """The columns of lines of JSON, VALID and TEXT."""
    shape = Shape()
    for path in columns.values() or [("\x00",)]:
        inner = shape
        for part in path:
            inner = inner.fields.setdefault(part, Shape())
    schema = {name: inner.dtype() for name, inner in shape.fields.items()}
    valid: pl.Series | pl.Expr = pl.lit(value=True)
    text: pl.Series | pl.Expr = pl.lit(value=True)
    lines: list[bytes] = []
    frame = _read(block, schema)
    # Most logs have no backslash at all, and looking for one byte is far faster than the expression.
    may_be_no_text = b"\\" in block and _ESCAPED.search(block) is not None
    if may_be_no_text or frame is None or not _are_objects(frame, block):
        lines = [line for line in block.split(b"\n") if line and not line.isspace()]
    if frame is None or not _are_objects(frame, block) or (may_be_no_text and len(frame) != len(lines)):
        frame, valid = _decoded_one_by_one(lines, schema)
    if may_be_no_text:
        text = pl.Series([not any(_ESCAPES.findall(line)) for line in lines], dtype=pl.Boolean)
    fields = [_field(path).alias(column) for column, path in columns.items()]
    return frame.select(*fields, pl.first().alias(VALID)).with_columns(valid.alias(VALID), text.alias(TEXT))


def _are_objects(frame: pl.DataFrame, block: bytes) -> bool:
    """Whether all lines are objects. Polars reads another value as an object without fields."""
    if not frame.select(pl.all_horizontal(pl.all().is_null()).any()).item():
        return True
    return len(frame) == block.count(b"\n{") + block.startswith(b"{")


def _field(path: tuple[str, ...]) -> pl.Expr:
    column = pl.col(path[0])
    for part in path[1:]:
        column = column.struct.field(part)
    return column


def _read(block: bytes, schema: dict[str, pl.DataType]) -> pl.DataFrame | None:
    try:
        return pl.read_ndjson(block, schema=schema, ignore_errors=True)
    except pl.exceptions.PolarsError:
        return None


def _decoded_one_by_one(lines: list[bytes], schema: dict[str, pl.DataType]) -> tuple[pl.DataFrame, pl.Series]:
    """Lines of which some are no JSON objects, and whether each of them is one."""
    parsed = [_parsed(line) for line in lines]
    valid = [isinstance(value, dict) for value, _ in parsed]
    objects = [text if ok else b"{}" for ok, (_, text) in zip(valid, parsed, strict=True)]
    frames: list[pl.DataFrame] = []
    parts = [(0, len(objects))] if objects else []
    while parts:
        start, end = parts.pop()
        frame = _read(b"\n".join(objects[start:end]), schema)
        middle = (start + end) // 2
        if frame is not None and len(frame) == end - start:
            frames.append(frame)
        elif end - start > 1:
            parts += [(middle, end), (start, middle)]
        else:  # Python can read this object and Polars cannot
            objects[start], valid[start] = b"{}", False
            parts.append((start, end))
    empty = pl.DataFrame(schema=schema)
    return pl.concat([empty, *frames]), pl.Series(valid, dtype=pl.Boolean)


def _parsed(line: bytes) -> tuple[Any, bytes]:
    """The value on a line, None if it is no JSON, and the line in strict JSON. Raises UnicodeDecodeError."""
    text = line.decode()
    try:
        value = json.loads(text, parse_constant=_missing)
    except (ValueError, RecursionError):
        return None, line
    # Python and JavaScript programs write NaN for missing numbers, which is no JSON.
    return value, json.dumps(value).encode() if "NaN" in text or "Infinity" in text else line


def _missing(_constant: str) -> None:
    return None


def _sample(path: Path) -> Iterator[bytes]:
    """Lines from all parts of a file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            yield from stream
            return
        for number in range(_SAMPLES):
            stream.seek(size * number // _SAMPLES)
            if number > 0:
                stream.readline(_MAX_OBJECT)
            while (line := stream.readline(_MAX_OBJECT)) and stream.tell() <= size * number // _SAMPLES + _SAMPLE_BYTES:
                yield line


def _blocks(plain: PlainFile) -> Iterator[bytes]:
    """Blocks of lines of JSON."""
    if plain.content == "json_lines":
        with plain.path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                # The rest of the last line.
                yield block + stream.readline(_MAX_OBJECT)
        return
    lines: list[bytes] = []
    size = 0
    for line in _elements(plain):
        lines.append(line)
        size += len(line)
        if size > _BLOCK_BYTES:
            yield b"\n".join(lines)
            lines, size = [], 0
    if lines:
        yield b"\n".join(lines)


class _Elements:
    """The objects in JSON that is no JSON Lines, each as the text of one line."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self.stream, self.name = stream, name
        self.text, self.place, self.passed, self.ended = "", 0, 0, False
        self.lists: list[str] = []  # the fields of the object around the rows that are lists of objects

    def lines(self) -> Iterator[str]:
        """The objects of an array, of the list of objects in an object, or of objects that follow each other."""
        while first := self.peek():
            self.place += 1
            if first == "[":
                yield from self.array()
            elif first == "{":
                yield from self.outer_object()
            else:
                raise self.broken()

    def array(self) -> Iterator[str]:
        """The elements of an array, after its bracket."""
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self.expect(",")
        self.place += 1

    def outer_object(self) -> Iterator[str]:
        """The elements of the list of objects in an object, or the object if it has no such list, after its brace."""
        fields, lists = [], len(self.lists)
        while self.peek() != "}":
            name = self.value()
            self.expect(":")
            if self.peek() != "[":
                fields.append(f"{name}: {self.value()}")
            else:
                self.place += 1
                if self.peek() == "{":
                    self.lists.append(name)
                    yield from self.array()
                else:
                    fields.append(f"{name}: [{', '.join(self.array())}]")
            if self.peek() != "}":
                self.expect(",")
        self.place += 1
        if len(self.lists) == lists:
            yield "{" + ", ".join(fields) + "}"

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.place)
            self.place = match.end() if match else self.place
            if self.place < len(self.text) or not self.more():
                return self.text[self.place : self.place + 1]

    def expect(self, character: str) -> None:
        """Read this character. Raises BadLog if the next one is another."""
        if self.peek() != character:
            raise self.broken()
        self.place += 1

    def value(self) -> str:
        """Read a JSON value, as text on one line. Raises BadLog."""
        self.peek()
        while True:
            try:
                _, end = _DECODER.raw_decode(self.text, self.place)
            except (ValueError, RecursionError):
                end = len(self.text)
            if end < len(self.text):
                break
            if len(self.text) - self.place > _MAX_OBJECT or not self.more():
                raise self.broken()
        text = self.text[self.place : end]
        self.place = end
        return text.replace("\n", " ").replace("\r", " ")

    def more(self) -> bool:
        """Read on. False at the end of the file."""
        self.passed += self.text.count("\n", 0, self.place)
        self.text = self.text[self.place :]
        self.place = 0
        # Twice as much each time: a long object is not parsed from its beginning for each block.
        block = self.stream.read(max(_BLOCK_BYTES // 4, len(self.text)))
        self.text += block
        return bool(block)

    def broken(self) -> BadLog:
        """The error for text that is no JSON here."""
        line = self.passed + self.text.count("\n", 0, self.place) + 1
        return BadLog(f"{self.name} is no complete JSON: it cannot be read from line {line:,} on")


_SPACE: Final = re.compile(r"[ \t\r\n]*")
_DECODER: Final = json.JSONDecoder(parse_constant=_missing)


def _elements(plain: PlainFile) -> Iterator[bytes]:
    with plain.path.open(encoding="utf-8-sig", newline="\n") as stream:
        elements = _Elements(stream, plain.name)
        yield from (line.encode() for line in elements.lines())
        if len(elements.lists) > 1:
            raise BadLog(f"{plain.name} has several lists of objects, {', '.join(elements.lists)[:200]}; expected one")
