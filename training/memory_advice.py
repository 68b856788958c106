"""Out of memory, on the host or a GPU, as one line that says what to lower."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from segue.errors import OutOfMemory
from training.checkpoint import Checkpoints
from training.options import Options

# What a step's memory grows with, in the order in which lowering it costs least.
_LOWERED: Final = ("batch_size", "negatives", "copies", "dimension")
_HOST: Final = ("not enough memory", "can't allocate memory", "cannot allocate memory")  # torch's allocator of the host


@contextmanager
def oom_hint(options: Options, checkpoints: Checkpoints, *, fixed: frozenset[str] = frozenset()) -> Iterator[None]:
    """Raise OutOfMemory with advice for whatever torch and NumPy say when memory is short.

    `fixed` names options that this training cannot change. A checkpoint stays where it is.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _short_of_memory(error):
            raise
        raise OutOfMemory(_advice(str(error), options, checkpoints, fixed)) from error


def _short_of_memory(error: Exception) -> bool:
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(words in str(error).lower() for words in _HOST)


def _advice(said: str, options: Options, checkpoints: Checkpoints, fixed: frozenset[str]) -> str:
    names = [name for name in _LOWERED if name in type(options).model_fields and name not in fixed]
    named = [f"{name} (now {getattr(options, name)})" for name in names]
    lower = f"lower {_listed(named)} with --set" if named else "train on fewer sessions or a machine with more memory"
    kept = (
        f"; {checkpoints.folder} keeps what was trained: the same command goes on from it where there is more memory, "
        "lower options need another --out"
        if checkpoints.exist()
        else ""
    )
    return f"out of memory{_wanted(said)}: {lower}{kept}"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _wanted(said: str) -> str:
    """How much could not be had, where the error says so."""
    found = re.search(r"allocate ([\d.]+) (bytes|[KMGTP]i?B)", said)
    if found is None:
        return ""
    amount, unit = float(found[1]), found[2]
    return (
        f" ({amount / 2**30:,.1f} GiB more were asked for)"
        if unit == "bytes"
        else f" ({amount:g} {unit} more were asked for)"
    )
