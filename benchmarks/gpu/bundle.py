"""Collect the wheels that the GPU check needs on a machine without a network, in parts that can be copied one by one.

    python -m benchmarks.gpu.bundle --python-version 3.12 --have torch onnxruntime --out FOLDER

FOLDER then holds part-001.bin and so on, and manifest.json with the sha256 of each part and each wheel.
benchmarks/gpu/unpack.py puts them together there.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.gpu.facts import ROOT, commit
from benchmarks.gpu.unpack import MANIFEST, Damaged, sha256

MOST_PART_MIB: Final = 60
_PART_MIB: Final = 56
_EXTRAS: Final = ("http", "gpu", "training")
_TESTS: Final = ("pytest", "pytest-timeout", "hypothesis", "psutil")
_NAME: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")
_GLIBC: Final = (5, 12, 17, 24, 26, 27, 28, 31, 34, 35, 39)  # minor versions that wheels are built for
_BLOCK: Final = 1 << 20


def canonical(requirement: str) -> str:
    """The name of a requirement or of a wheel's file, as PyPI compares names."""
    found = _NAME.match(requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def requirements(have: Sequence[str]) -> list[str]:
    """What the check needs: the project's own requirements for serving with a GPU and for training, and its tests.

    Without the packages in `have`, and without faiss-cpu, which faiss-gpu replaces.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for extra in _EXTRAS for one in extras[extra])]
    asked += [one for one in extras["dev"] if canonical(one) in _TESTS]
    without = {*map(canonical, have), "faiss-cpu", canonical(project["name"])}
    return sorted({one for one in asked if canonical(one) not in without})


def platforms(glibc: int) -> list[str]:
    """The platform tags of wheels for x86-64 Linux with this minor version of glibc 2."""
    tags = [f"manylinux_2_{minor}_x86_64" for minor in _GLIBC if minor <= glibc]
    return [*reversed(tags), "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]


def download(wanted: Sequence[str], python_version: str, glibc: int, folder: Path) -> None:
    """Download wheels for another Python, with what they require. Raises Damaged where pip finds no wheel."""
    argv = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--implementation", "cp"]
    argv += ["--python-version", python_version, "--dest", str(folder)]
    argv += [word for tag in platforms(glibc) for word in ("--platform", tag)]
    if subprocess.run([*argv, *wanted], check=False).returncode:
        raise Damaged(f"pip found no wheels for Python {python_version}: see its output above")


def write_parts(wheels: Sequence[Path], wanted: Sequence[str], out: Path, part_bytes: int) -> int:
    """Write the wheels one after another, cut into parts, and the manifest. The number of parts."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("part-*.bin"):
        old.unlink()
    parts: list[Path] = []
    room = 0
    for wheel in wheels:
        with wheel.open("rb") as stream:
            while block := stream.read(min(_BLOCK, room or part_bytes)):
                if not room:
                    parts.append(out / f"part-{len(parts) + 1:03}.bin")
                    room = part_bytes
                with parts[-1].open("ab") as part:
                    part.write(block)
                room -= len(block)
    manifest = {
        "commit": commit(),
        "requirements": list(wanted),
        "parts": [_facts(part) for part in parts],
        "wheels": [_facts(wheel) for wheel in wheels],
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return len(parts)


def _facts(file: Path) -> dict[str, object]:
    return {"name": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Download and cut."""
    chosen = _parser().parse_args(arguments)
    if not 0 < chosen.part_mib <= MOST_PART_MIB:
        print(f"--part-mib {chosen.part_mib:g}: expected more than 0, at most {MOST_PART_MIB}", file=sys.stderr)
        return 2
    wanted = requirements(chosen.have)
    if chosen.list:
        print("\n".join(wanted))
        return 0
    if chosen.out is None:
        print("--out is missing: expected the folder that the parts go to", file=sys.stderr)
        return 2
    chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=chosen.out) as temporary:
        folder = chosen.wheels or Path(temporary)
        try:
            if chosen.wheels is None:
                download(wanted, chosen.python_version, chosen.glibc, folder)
        except Damaged as error:
            print(error, file=sys.stderr)
            return 1
        have = {*map(canonical, chosen.have)}
        wheels = [one for one in sorted(folder.glob("*.whl")) if canonical(one.name.partition("-")[0]) not in have]
        count = write_parts(wheels, wanted, chosen.out, int(chosen.part_mib * 2**20))
        size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{len(wheels)} wheels, {size:,.0f} MiB, in {count} parts: {chosen.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.bundle",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python-version", default="3.12", help="of the machine without a network  [default: 3.12]")
    parser.add_argument("--glibc", type=int, default=39, help="minor version of its glibc 2  [default: 39]")
    parser.add_argument("--have", nargs="*", default=["torch"], help="packages it has  [default: torch]")
    parser.add_argument("--part-mib", type=float, default=_PART_MIB, help=f"size of a part  [default: {_PART_MIB}]")
    parser.add_argument("--wheels", type=Path, help="take the wheels of this folder and download none")
    parser.add_argument("--list", action="store_true", help="print what would be downloaded, without what it requires")
    parser.add_argument("--out", type=Path, help="folder of the parts")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
