"""Put the parts of a bundle together and install its wheels, without a network; needs Python and pip alone.

    python benchmarks/gpu/unpack.py PARTS --into FOLDER --target SITE

PARTS are files of the bundle or folders with some of them. They are verified and collected in FOLDER, so that parts may
come one at a time; the exit code is 3 until all are there. Then wheels that this Python lacks, or has in a version that
does not fit, are installed into SITE, which goes on PYTHONPATH together with the project's folder.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import ZipFile

MANIFEST = "manifest.json"
INCOMPLETE = 3  # exit code
_BLOCK = 1 << 20
_PROJECT = Path(__file__).resolve().parents[2]


class Damaged(Exception):
    """The bundle cannot be used; the text says why in one line."""


def sha256(file: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle. Raises Damaged where there is none, or it names files elsewhere."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        names = [one["name"] for one in (*manifest["parts"], *manifest["wheels"])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder / MANIFEST} cannot be read ({error}): copy it from the bundle") from error
    wrong = [name for name in names if Path(name).name != name]
    if wrong:
        raise Damaged(f"{folder / MANIFEST} names {wrong[0]!r}, which is no plain file name")
    return manifest


def collect(given: Iterable[Path], into: Path) -> list[str]:
    """Verify the parts that are given and copy them, with the manifest. The names of those that are still missing."""
    into.mkdir(parents=True, exist_ok=True)
    files = [file for one in given for file in (sorted(one.iterdir()) if one.is_dir() else [one])]
    for file in files:
        if file.name == MANIFEST and file.parent.resolve() != into.resolve():
            (into / MANIFEST).write_bytes(file.read_bytes())
    parts = {part["name"]: part for part in read_manifest(into)["parts"]}
    for file in files:
        if file.name in parts and not _is_whole(into / file.name, parts[file.name]):
            _verify(file, parts[file.name], "copy it again")
            unfinished = into / f"{file.name}.unfinished"
            unfinished.write_bytes(file.read_bytes())
            unfinished.rename(into / file.name)
    return [name for name, part in parts.items() if not _is_whole(into / name, part)]


def join(folder: Path) -> list[Path]:
    """The wheels, cut out of the parts one after another and verified. Raises Damaged."""
    manifest, wheels = read_manifest(folder), folder / "wheels"
    wheels.mkdir(exist_ok=True)
    parts = iter([folder / part["name"] for part in manifest["parts"]])
    stream = next(parts).open("rb") if manifest["parts"] else None
    found = []
    try:
        for wheel in manifest["wheels"]:
            target, left = wheels / wheel["name"], int(wheel["bytes"])
            with target.open("wb") as out:
                while left and stream is not None:
                    block = stream.read(min(left, _BLOCK))
                    if not block:
                        stream.close()
                        following = next(parts, None)
                        stream = following.open("rb") if following else None
                    out.write(block)
                    left -= len(block)
            _verify(target, wheel, "make the bundle again")
            found.append(target)
    finally:
        if stream is not None:
            stream.close()
    return found


def _is_whole(file: Path, expected: dict[str, Any]) -> bool:
    return file.is_file() and file.stat().st_size == expected["bytes"] and sha256(file) == expected["sha256"]


def _verify(file: Path, expected: dict[str, Any], remedy: str) -> None:
    if not _is_whole(file, expected):
        size = file.stat().st_size if file.is_file() else 0
        raise Damaged(
            f"{file} is damaged ({size:,} bytes): expected {expected['bytes']:,} bytes with sha256 "
            f"{expected['sha256'][:16]}...; {remedy}"
        )


def needed(wheels: Sequence[Path], requirements: Sequence[str]) -> list[Path]:
    """The wheels that this Python lacks, or has in a version that a wheel to install or the project does not take."""
    packaging: Any = __import__("pip._vendor.packaging", fromlist=["requirements", "utils"])
    __import__("pip._vendor.packaging.requirements")
    __import__("pip._vendor.packaging.utils")
    parsed, canonical = packaging.requirements.Requirement, packaging.utils.canonicalize_name
    named = {canonical(wheel.name.partition("-")[0]): wheel for wheel in wheels}
    # Libraries of CUDA are found beside the package that needs them, so that those elsewhere do not do.
    chosen = {name for name in named if name.startswith("nvidia-") or _installed(name) is None}
    while True:
        wanted = [parsed(text) for text in requirements]
        wanted += [parsed(text) for name in chosen for text in _requires(named[name])]
        asked = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
        more = {
            canonical(one.name)
            for one in asked
            if canonical(one.name) in named
            and canonical(one.name) not in chosen
            and not one.specifier.contains(_installed(canonical(one.name)), prereleases=True)
        }
        if not more:
            return [named[name] for name in sorted(chosen)]
        chosen |= more


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requires(wheel: Path) -> list[str]:
    with ZipFile(wheel) as archive:
        file = next(
            name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1
        )
        lines = archive.read(file).decode().partition("\n\n")[0].splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]


def install(wheels: Sequence[Path], target: Path | None) -> None:
    """Install wheels and nothing else: what is there, torch above all, stays. Raises Damaged where pip fails."""
    argv = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "-q"]
    argv += ["--upgrade", "--target", str(target)] if target else []
    if wheels and subprocess.run([*argv, *map(str, wheels)], check=False).returncode:
        raise Damaged(f"pip could not install all of {len(wheels)} wheels: see its output above")


def describe_project(site: Path, project: Path = _PROJECT) -> None:
    """Write what the project says of itself (its version) to where packages are looked for; its code stays in place."""
    if not (project / "pyproject.toml").is_file() or list(site.glob("segue-*.dist-info")):
        return
    code = "import sys; from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel(sys.argv[1])"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", code, folder], cwd=project, capture_output=True, check=False)
        made = list(Path(folder).glob("*.dist-info"))
        if done.returncode or not made:
            raise Damaged(f"setuptools could not describe the project in {project}: setuptools 77 or newer is needed")
        for file in made[0].rglob("*"):
            if file.is_file():
                copy = site / made[0].name / file.relative_to(made[0])
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect, and install once all parts are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path, nargs="+", help="parts of the bundle, or folders with some of them")
    parser.add_argument("--into", type=Path, required=True, help="where parts are collected and put together")
    parser.add_argument("--target", type=Path, help="where to install  [default: this Python's own packages]")
    parser.add_argument("--all", action="store_true", help="install every wheel, whatever is there already")
    chosen = parser.parse_args(arguments)
    try:
        missing = collect(chosen.parts, chosen.into)
        manifest = read_manifest(chosen.into)
        if missing:
            print(
                f"{len(manifest['parts']) - len(missing)} of {len(manifest['parts'])} parts are here, missing: ", end=""
            )
            print(", ".join(missing))
            return INCOMPLETE
        wheels = join(chosen.into)
        wanted = wheels if chosen.all else needed(wheels, manifest["requirements"])
        install(wanted, chosen.target)
        describe_project(chosen.target or Path(sysconfig.get_path("purelib")))
    except Damaged as error:
        print(error, file=sys.stderr)
        return 1
    print(f"installed {len(wanted)} of {len(wheels)} wheels; the others are here already")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
