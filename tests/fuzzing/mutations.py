"""Damage: bytes, texts and JSON values that are nearly right. Everything is drawn from one random.Random."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

_WORDS: Final = (
    *(b"\0", b"\xff", b"\xff\xff\xff\xff", b"\r\n", b"\n", b"\t", b'"', b"'", b",", b"\\", b"%00", b"%", b"&", b"="),
    *(b"{", b"}", b"[", b"]", b"[[[[[[[[", b"null", b"true", b"NaN", b"Infinity", b"-1", b"0", b"1e999", b"1e-999"),
    *(b"9223372036854775807", b"18446744073709551616", b"1" * 5000, b"0x10", b"1_000"),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80"),
    *(b"\\ud800", b"\\u0000", "é".encode(), "\u2028".encode(), "\U0001f3b5".encode(), b"../", b"..%2f", b"//", b"PAR1"),
)  # fmt: skip
_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 0.5, 1000.0, 1e300, -1e-300),
    *("", "a", "\0", " ", "\n", "é\u0301", "\U0001f3b5" * 70, "a" * 257, "x" * 5000, "play", "skip", "0", "1970"),
    *("2026-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999+14:00", "2026-02-30T00:00:00Z"),
    *([], [[]], {}, {"a": {}}, [None] * 3),
)  # fmt: skip


def damaged(content: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """The content with one to six changes; `others` lend parts of theirs."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        content = rng.choice(_CHANGES)(content, rng)
        if others and rng.random() < 0.1:
            other = rng.choice(others)
            content = content[: _place(content, rng)] + other[_place(other, rng) :]
    return content


def text(rng: random.Random, alphabet: str, longest: int) -> str:
    """Letters, few of them more often than many."""
    return "".join(rng.choices(alphabet, k=min(longest, int(rng.expovariate(0.15)))))


def damaged_json(value: Any, rng: random.Random) -> Any:
    """The value with another value, name or repetition somewhere in it."""
    if value and rng.random() < 0.85:
        if isinstance(value, dict):
            return _damaged_object(value, rng)
        if isinstance(value, list):
            return _damaged_array(value, rng)
    return rng.choice(_VALUES)


def _damaged_object(value: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    name = rng.choice(list(value))
    match rng.randrange(8):
        case 0:
            return {key: one for key, one in value.items() if key != name}
        case 1:
            return {**value, rng.choice(("", "more", "__proto__", f"{name}_")): value[name]}
        case _:
            return {**value, name: damaged_json(value[name], rng)}


def _damaged_array(value: list[Any], rng: random.Random) -> list[Any]:
    at = rng.randrange(len(value))
    match rng.randrange(8):
        case 0:
            return value[:at] + value[at + 1 :]
        case 1:
            return value * rng.choice((2, 3, 101)) if len(value) < 10 else value * 2
        case _:
            return [*value[:at], damaged_json(value[at], rng), *value[at + 1 :]]


def json_bytes(value: Any, rng: random.Random) -> bytes:
    """The value as JSON in one of its spellings; at times a name is there twice."""
    content = json.dumps(
        value, ensure_ascii=rng.random() < 0.5, separators=rng.choice(((",", ":"), (", ", ": "), (" ,\n", "\t:")))
    )
    if rng.random() < 0.05:
        content = content.replace("{", '{"events":1,', 1)
    return content.encode("utf-8", "surrogatepass")


def _place(content: bytes, rng: random.Random) -> int:
    return rng.randint(0, len(content))


def _flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return b"\0"
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    """A number of 1, 2, 4 or 8 bytes in place of what was there."""
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(
        (0, 1, 2**7, 2**15 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1, rng.getrandbits(64))
    )
    at = _place(content, rng)
    return content[:at] + number.to_bytes(8, "little")[:size] + content[at + size :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + rng.choice(_WORDS) + content[at:]


def _replace(content: bytes, rng: random.Random) -> bytes:
    word, at = rng.choice(_WORDS), _place(content, rng)
    return content[:at] + word + content[at + len(word) :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    start, end = sorted((_place(content, rng), _place(content, rng)))
    return content[:start] + content[min(end, start + rng.choice((1, 4, 64, 10**6))) :]


def _end(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start, end = sorted((_place(content, rng), _place(content, rng)))
    part = content[start : min(end, start + 256)]
    return content[:start] + part * rng.choice((2, 3, 20)) + content[start:]


def _noise(content: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + rng.randbytes(rng.choice((1, 2, 8, 40))) + content[at:]


_CHANGES: Final[tuple[Callable[[bytes, random.Random], bytes], ...]] = (
    *(_flip, _flip, _overwrite, _overwrite, _insert, _replace, _replace, _cut, _end, _repeat, _noise),
)  # fmt: skip
