"""Which files of a folder or an archive are logs of a kind, as services export and archives publish them.

The name of a file tells little: several exports lie in one folder, and names have changed before. Where the first bytes
tell the shape of the rows, they decide.
"""

import fnmatch
import re
from collections.abc import Callable
from pathlib import PurePath, PurePosixPath
from typing import Final, Literal, NamedTuple, TypeAlias

from training.prepare.content import content_of
from training.prepare.options import LogKind

_Head: TypeAlias = Callable[[], bytes]

_COMPRESSED: Final = re.compile(r"\.(gz|bz2|zst)$", re.I)
ARCHIVES: Final = re.compile(r"\.(zip|tar|tgz|tbz2?|tzst|tar\.(gz|bz2|zst))$", re.I)

PATTERNS: Final[dict[LogKind, tuple[str, ...]]] = {
    "events": ("*.csv", "*.tsv", "*.parquet", "*.jsonl", "*.ndjson", "*.json", "*.inter"),
    "spotify": ("*.json",),
    "spotify-account": ("*.json",),
    "lastfm": ("*.csv", "*.json"),
    "listenbrainz": ("*.jsonl", "*.json"),
    "apple-music": ("*.csv",),
    "rockbox": ("*scrobbler*.log",),
    "mssd": ("*.csv",),
    "lfm1k": ("*.tsv",),
    "lfm2b": ("*listening*events*.tsv", "*listening*events*.csv"),
    "yambda": ("*listens*.parquet",),
}

_EXPECTED: Final[dict[LogKind, str]] = {
    "spotify": "Streaming_History_Audio_*.json or endsong_*.json",
    "spotify-account": "StreamingHistory*.json",
    "listenbrainz": "*.jsonl with listens",
    "apple-music": "Apple Music Play Activity.csv",
    "mssd": "log_*.csv of the training set, or log_prehistory_*.csv of the test set",
}

# The words that the first rows of an export contain, and no other file of its folder does.
_SHAPES: Final[dict[LogKind, tuple[bytes, ...]]] = {
    "spotify": (b'"ts"', b'"ms_played"'),
    "spotify-account": (b'"endTime"', b'"msPlayed"', b'"trackName"'),
    "listenbrainz": (b'"listened_at"', b'"track_metadata"'),
    "apple-music": (b"Event Type", b"Play Duration Milliseconds"),
}

# Files of event logs and published data sets that hold no plays, by the pattern of their names: what they hold instead.
_NO_PLAYS: Final[dict[LogKind, tuple[tuple[str, str], ...]]] = {
    "events": (
        ("preferences-????????t??????-*.parquet", "likes, dislikes and bans of an event log, not plays"),
        ("lists-????????t??????-*.parquet", "served lists of an event log, not plays"),
    ),
    "mssd": (("tf_*.csv", "features of tracks"),),
    "lfm1k": (("userid-profile*", "profiles of listeners"),),
    "yambda": (
        *((f"{what}.parquet", f"{what}, not listens") for what in ("likes", "dislikes", "unlikes", "undislikes")),
    ),
}
# Names that no log has, in lower case: what people and systems put beside the files of a log.
_BESIDE: Final = (
    *("readme", "readme.txt", "licen[cs]e", "licen[cs]e.txt", "copying", "changelog.txt", "*.md", "*.html", "*.pdf"),
    *("manifest.json", "checksum*", "md5sum*", "sha*sum*", "*.md5", "*.sha1", "*.sha256", "*.sha512", "*.asc", "*.sig"),
    *(".ds_store", "thumbs.db"),
)
_MSSD_HALVES: Final = ("log_prehistory_", "log_input_")
_YAMBDA_SIZES: Final = ("50m", "500m", "5b")


class Role(NamedTuple):
    """What a file is to a kind of log."""

    use: Literal["log", "if no other", "none"]
    holds: str = ""  # what a file of no use holds, if this is known


LOG: Final = Role("log")
UNKNOWN: Final = Role("none")


def role_of(kind: LogKind, name: PurePath, head: _Head) -> Role:
    """The role of a file with this name below its folder or archive, and these first bytes without compression."""
    if is_hidden(name, kind):
        return UNKNOWN
    lower = _COMPRESSED.sub("", name.name.lower())
    holds = next((what for pattern, what in _NO_PLAYS.get(kind, ()) if fnmatch.fnmatchcase(lower, pattern)), "")
    if holds:
        return Role("none", holds)
    if second := _second_choice(kind, lower, name):
        return Role("if no other", second)
    if not any(fnmatch.fnmatchcase(lower, pattern) for pattern in PATTERNS[kind]):
        return UNKNOWN
    if kind in _SHAPES:
        return _role_of_export(kind, lower, head())
    one_object = kind == "events" and lower.endswith(".json") and not _is_list(head())
    return UNKNOWN if one_object else LOG


def _second_choice(kind: LogKind, lower: str, name: PurePath) -> str:
    """What a file holds that is read only if there is no other log, or an empty text."""
    if kind == "mssd" and lower.startswith(_MSSD_HALVES):
        return "halves of sessions (the test set): name them to read them as well"
    if kind == "yambda" and (lower == "multi_event.parquet" or "sequential" in name.parts[:-1]):
        return "listens in another form"
    return ""


def is_beside(name: str) -> bool:
    """Whether a file that the user named is no log by its name, such as a README that `data/*` matches."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in _BESIDE)


def expected_files(kind: LogKind) -> str:
    """The files of a kind of log, for messages."""
    return _EXPECTED.get(kind) or " or ".join(PATTERNS[kind])


def is_hidden(name: PurePath, kind: LogKind) -> bool:
    """Whether a file is hidden, or unfinished."""
    marks = ("_", ".")
    return any(part.startswith(marks) for part in name.parts) and not (
        kind == "rockbox" and not any(part.startswith(marks) for part in name.parts[:-1])
    )


def _role_of_export(kind: LogKind, name: str, head: bytes) -> Role:
    shape = shape_of(head)
    if shape == "spotify" and "video" in name:
        return Role("none", "video, not audio")
    if shape == kind:
        return LOG
    if kind == "spotify" and shape == "spotify-account":
        return Role(
            "none",
            "Spotify account data, with times in whole minutes: read them with `segue prepare spotify-account`, "
            "or request the extended streaming history",
        )
    if kind == "spotify-account" and shape == "spotify":
        return Role("none", "Spotify's extended streaming history: read it with `segue prepare spotify`")
    if kind == "spotify-account" and b'"podcastName"' in head:
        return Role("none", "podcasts")
    return UNKNOWN


def shape_of(head: bytes) -> LogKind | None:
    """The export whose rows a file holds, from its first bytes without compression."""
    return next((kind for kind, words in _SHAPES.items() if all(word in head for word in words)), None)


def _is_list(head: bytes) -> bool:
    content = content_of(head)
    return content == "json_lines" or (content == "json" and head.lstrip().startswith(b"["))


def yambda_size(name: PurePath) -> str:
    """The part of a path that names a size of the data set, such as flat/50m, or an empty text."""
    parts = name.parts
    for place, part in enumerate(parts):
        if part.lower() in _YAMBDA_SIZES:
            return str(PurePosixPath(*parts[max(place - 1, 0) : place + 1]))
    return ""
