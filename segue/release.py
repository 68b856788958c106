"""A release: an immutable folder with a trained model and everything else that serving needs.

docs/release-format.md describes the file format. A release is written to a temporary folder, which is renamed when it
is complete. Opening a release verifies the format version, file sizes, hashes and array shapes. No file is a pickle.
Arrays are memory-mapped, so that several processes share one copy in memory.
"""

import hashlib
import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segue.arrays import Float32, mapped_array
from segue.catalogue import FIRST_TRACK_ROW, MAPPED_FILES, PAD_ROW, Catalogue
from segue.errors import BadRelease
from segue.hybrid import FILES as MIXTURE_FILES
from segue.hybrid import NETWORK_FILES, HybridRanker, Mixture, Network
from segue.map_projection import validate_map
from segue.ngram import FILES as COUNT_FILES
from segue.ngram import CountTables, NgramCounts
from segue.play_head import FILES as PLAY_HEAD_FILES
from segue.play_head import PlayHead
from segue.recommend import ServedRanker
from segue.safe_files import new_folder, read_json
from segue.window import Windows

FORMAT_VERSION: Final = 1
_FILE_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
RELEASE_NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
MANIFEST: Final = "manifest.json"
CATALOGUE: Final = "catalogue.parquet"
ENCODER: Final = "encoder.onnx"
ITEM_EMBEDDINGS: Final = "item_embeddings.npy"
TRACK_MAP: Final = "map.npy"
SAMPLE_TRACKS: Final = "sample_tracks.npy"
SAMPLE_SKIPPED: Final = "sample_skipped.npy"
INDEX: Final = "index.faiss"
INDEX_FACTS: Final = "index.json"
# `segue index` replaces these files, so the name of a release does not depend on them.
_INDEX_FILES: Final = (INDEX, INDEX_FACTS)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileFacts(_Frozen):
    """The expected size and hash of a file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class DatasetFacts(_Frozen):
    """The dataset that the release was trained on."""

    fingerprint: str
    source: str
    split: Literal["last-play", "new-sessions"]


class Loss(_Frozen):
    """The training objective: L = alpha * NLL + beta * NCE (paper, section 4.1.1)."""

    objective: Literal["next", "next-played"]
    alpha: float
    beta: float
    temperature: float
    negatives: int


class WindowFacts(_Frozen):
    """The number of latest plays that the encoder uses."""

    length: int = Field(ge=1, le=10_000)


class Manifest(_Frozen):
    """The contents of `manifest.json`."""

    format_version: Literal[1] = FORMAT_VERSION
    name: str = Field(
        pattern=RELEASE_NAME_PATTERN,
        description="Names the release in answers and logs: model and first digits of the content's hash",
    )
    model: str
    options: dict[str, Any]
    loss: Loss | None = Field(description="None for a baseline")
    window: WindowFacts
    dimension: int | None = Field(description="Columns of item_embeddings.npy; None without an encoder")
    metric: Literal["inner_product"] = "inner_product"
    tracks: int = Field(ge=0)
    dataset: DatasetFacts
    source_commit: str | None
    created: datetime
    files: dict[str, FileFacts]
    evaluation: dict[str, Any] = Field(description="Validation summary of the finished model")


class ReleaseMetadata(BaseModel):
    """The fields of Manifest that are known before the files of the release are written."""

    model: str
    options: dict[str, Any]
    loss: Loss | None
    window: WindowFacts
    dimension: int | None
    dataset: DatasetFacts
    source_commit: str | None
    evaluation: dict[str, Any]


class Release:
    """An opened release. `path` is the folder, `manifest` its checked manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def name(self) -> str:
        """The name of this release in responses and logs."""
        return self.manifest.name

    @property
    def has_encoder(self) -> bool:
        """Whether the release has an encoder. A release with neither encoder nor counts is evaluated, not served."""
        return ENCODER in self.manifest.files

    @property
    def has_counts(self) -> bool:
        """Whether the release has transition counts (segue.ngram)."""
        return COUNT_FILES[0] in self.manifest.files

    @property
    def count_tables(self) -> CountTables:
        """The transition counts, memory-mapped. Raises BadRelease if the release has none."""
        return CountTables(*map(self.array, COUNT_FILES))

    def mixed_with(self, encoder: ServedRanker | None, catalogue: Catalogue) -> HybridRanker:
        """Return the ranker by the release's counts and `encoder`. `catalogue` is its catalogue.

        Raises BadRelease if an array is damaged.
        """
        name = str(self.path)
        corrected = NETWORK_FILES[0] in self.manifest.files
        files = (*COUNT_FILES, *MIXTURE_FILES, *(NETWORK_FILES if corrected else ()))
        named = {file: self.array(file) for file in files}
        return HybridRanker(
            NgramCounts.of_arrays(named, catalogue.plays, name),
            Mixture.of_arrays(named, name),
            np.asarray(catalogue.by_plays),
            encoder,
            Network.of_arrays(named, name) if corrected else None,
        )

    @cached_property
    def play_head(self) -> PlayHead | None:
        """The model of skips, memory-mapped. None without one. Raises BadRelease if an array is damaged."""
        if PLAY_HEAD_FILES[0] not in self.manifest.files:
            return None
        named = {file: self.array(file) for file in PLAY_HEAD_FILES}
        return PlayHead.of_arrays(named, self.manifest.tracks + FIRST_TRACK_ROW, str(self.path))

    @property
    def default_caution(self) -> float:
        """The caution of requests that set none: an option of the training."""
        return float(self.manifest.options.get("caution", 0.0))

    @property
    def has_index(self) -> bool:
        """Whether the release has a FAISS index (`segue index` builds one). Without an index, search is exact."""
        return INDEX in self.manifest.files

    @cached_property
    def catalogue(self) -> Catalogue:
        """The catalogue in memory. Its play and skip counts are those of the training data."""
        return Catalogue.read_parquet(self.path / CATALOGUE)

    @cached_property
    def mapped_catalogue(self) -> Catalogue:
        """The catalogue from memory-mapped files, for serving.

        If the release does not contain these files, they are written to a temporary folder.
        """
        if set(MAPPED_FILES) <= set(self.manifest.files):
            return Catalogue.map(self.path)
        folder = Path(tempfile.mkdtemp(prefix="segue-tracks-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.catalogue.write_mapped(folder)
        return Catalogue.map(folder)

    def array(self, file: str) -> NDArray[Any]:
        """Memory-map the array in `file`, read-only. Raises BadRelease if `file` is missing or not an array."""
        if file not in self.manifest.files:
            raise BadRelease(f"{self.path} holds no {file}: it was trained as {self.manifest.model}")
        return mapped_array(self.path / file)

    @cached_property
    def item_embeddings(self) -> Float32:
        """The item embeddings. [num_rows, dimension] float32; row 0 is padding.

        The score of a track is the inner product of its item embedding and the query.
        """
        return self.array(ITEM_EMBEDDINGS)

    @cached_property
    def track_map(self) -> Float32 | None:
        """The position of each track on the 2D map, [num_rows, 2] float32. None if the release has no map."""
        return np.asarray(self.array(TRACK_MAP)) if TRACK_MAP in self.manifest.files else None

    @property
    def sample_windows(self) -> Windows:
        """Windows of validation sessions, for tuning an index and for comparing the outputs of model runtimes."""
        return Windows(self.array(SAMPLE_TRACKS).astype(np.int64), self.array(SAMPLE_SKIPPED).astype(np.bool_))


def sample_arrays(windows: Windows) -> dict[str, NDArray[Any]]:
    """Convert sample windows to the arrays that a release stores, by file name."""
    return {SAMPLE_TRACKS: windows.tracks.astype(np.int32), SAMPLE_SKIPPED: windows.skipped}


def open_release(path: Path) -> Release:
    """Open a release and verify its format version, file sizes, hashes and array shapes.

    Raises BadRelease with a one-line message.
    """
    manifest = read_manifest(path)
    for name, facts in manifest.files.items():
        _verify(path, name, facts)
    _check_no_unlisted_files(path, manifest)
    named = _name(manifest.model, {name: facts for name, facts in manifest.files.items() if name not in _INDEX_FILES})
    if manifest.name != named:
        raise BadRelease(f"{path / MANIFEST} calls the release {manifest.name}, by its content it is {named}")
    release = Release(path, manifest)
    if CATALOGUE not in manifest.files:
        raise BadRelease(f"{path / MANIFEST} lists no {CATALOGUE}, without which rows have no names")
    tracks = Catalogue.count(path / CATALOGUE)
    if tracks != manifest.tracks:
        raise BadRelease(f"{path}: the catalogue has {tracks} tracks, the manifest {manifest.tracks}")
    if release.has_encoder:
        expected = (tracks + FIRST_TRACK_ROW, manifest.dimension)
        found = release.item_embeddings
        if found.shape != expected or found.dtype != np.float32 or not found.flags.c_contiguous:
            raise BadRelease(
                f"{path}: {ITEM_EMBEDDINGS} is {found.dtype} {found.shape}, the manifest asks for float32 {expected}"
            )
        if not np.isfinite(found[PAD_ROW]).all():  # the index checks the embeddings of the tracks
            raise BadRelease(f"{path}: the item embedding of row {PAD_ROW} is not finite: train the release again")
    if release.track_map is not None:
        validate_map(path / TRACK_MAP, release.track_map, tracks)
    if set(MAPPED_FILES) <= set(manifest.files) and len(release.mapped_catalogue) != tracks:
        found_tracks = len(release.mapped_catalogue)
        raise BadRelease(f"{path}: the files of the catalogue hold {found_tracks} tracks, the manifest {tracks}")
    return release


def write_release(
    path: Path,
    draft: ReleaseMetadata,
    catalogue: Catalogue,
    arrays: Mapping[str, NDArray[Any]],
    encoder: bytes | None = None,
    *,
    overwrite: bool = False,
    check: Callable[[Path], object] | None = None,
) -> Release:
    """Write a release atomically and open it. `arrays` maps each file name to the array for that .npy file.

    `check` is called with the temporary folder before the folder is renamed to `path`. If `check` raises, the
    temporary folder is deleted and no release is written.
    """
    with new_folder(path, overwrite=overwrite, marker=MANIFEST) as folder:
        catalogue.write_parquet(folder / CATALOGUE)
        for name, array in arrays.items():
            np.save(folder / name, array, allow_pickle=False)
        if encoder is not None:
            (folder / ENCODER).write_bytes(encoder)
        if encoder is not None or COUNT_FILES[0] in arrays:  # the release can be served
            catalogue.write_mapped(folder)
        if check is not None:
            check(folder)
        files = _facts_of(folder)
        _write_manifest(
            folder,
            Manifest(
                **draft.model_dump(),
                name=_name(draft.model, files),
                tracks=len(catalogue),
                created=datetime.now(UTC),
                files=files,
            ),
        )
    return open_release(path)


def with_index(release: Release, index: bytes | None, facts: Mapping[str, Any]) -> Release:
    """Replace the index of a release and open the result. Raises BadRelease if another release has taken its place.

    `index` is the content of index.faiss, or None for exact search. `facts` is the content of index.json.
    """
    with new_folder(release.path, overwrite=True, marker=MANIFEST) as folder:
        try:
            for name in release.manifest.files:
                if name not in _INDEX_FILES:
                    (folder / name).hardlink_to(release.path / name)
        except FileNotFoundError:  # of a file that the release in its place does not have
            _check_not_replaced(release)
            raise
        if index is not None:
            (folder / INDEX).write_bytes(index)
        (folder / INDEX_FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        files = release.manifest.files | _facts_of(folder, only=_INDEX_FILES)
        if index is None:
            files.pop(INDEX, None)
        _write_manifest(folder, release.manifest.model_copy(update={"files": files}))
        _check_not_replaced(release)
    return open_release(release.path)


def _check_not_replaced(release: Release) -> None:
    if (now := read_manifest(release.path).name) != release.manifest.name:
        raise BadRelease(f"{release.path} was replaced by {now} meanwhile: run the command again for its index")


def _name(model: str, files: Mapping[str, FileFacts]) -> str:
    digest = hashlib.sha256("".join(f"{name}{facts.sha256}" for name, facts in sorted(files.items())).encode())
    return f"{model}-{digest.hexdigest()[:10]}"


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a release without checking the other files. Raises BadRelease with a one-line message."""
    file = path / MANIFEST
    if not file.is_file():
        raise BadRelease(f"{path} is not a release: it holds no {MANIFEST} (segue train writes one)")
    try:
        content = read_json(file)
    except ValueError as error:
        raise BadRelease(f"{file} is damaged: {error}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION or type(version) is not int:
        raise BadRelease(f"{file} has format version {version!r}, this Segue reads {FORMAT_VERSION}: train it again")
    try:
        # Strict validation of JSON text accepts a string for `created`; strict validation of Python objects does not.
        return Manifest.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRelease(f"{file}: {ascii(where)[1:-1][:200]}: {first['msg']}") from error


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _facts_of(folder: Path, only: tuple[str, ...] | None = None) -> dict[str, FileFacts]:
    names = sorted(file.name for file in folder.iterdir() if only is None or file.name in only)
    return {name: FileFacts(sha256=_sha256(folder / name), bytes=(folder / name).stat().st_size) for name in names}


def _check_no_unlisted_files(path: Path, manifest: Manifest) -> None:
    """Raise BadRelease if the folder has a file that the manifest does not list.

    encoder.onnx can refer to other files in its folder, so unlisted files would be read without a check.
    """
    for file in path.iterdir():
        if file.name != MANIFEST and file.name not in manifest.files:
            raise BadRelease(f"{path} holds {file.name!r}, which its manifest does not list: take it away")


def _verify(path: Path, name: str, facts: FileFacts) -> None:
    if not re.fullmatch(_FILE_NAME, name):
        raise BadRelease(f"{path / MANIFEST} lists {name[:200]!r}, which is no plain file name")
    file = path / name
    if not file.is_file() or file.is_symlink():
        raise BadRelease(f"{path} is incomplete: {name} is missing or no plain file; copy the release again")
    size = file.stat().st_size
    if size != facts.bytes:
        raise BadRelease(f"{file} has {size} bytes, the manifest says {facts.bytes}; copy the release again")
    if _sha256(file) != facts.sha256:
        raise BadRelease(f"{file} is not the file that was released: its sha256 differs; copy the release again")


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BadRelease(f"{file} cannot be read ({error.strerror}): copy the release again") from error
