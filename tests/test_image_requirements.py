"""What the images install: each file pinned by version and hash, in agreement with pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest

packaging_requirements = pytest.importorskip("packaging.requirements")
from packaging.requirements import Requirement  # noqa: E402
from packaging.utils import canonicalize_name  # noqa: E402

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docker" / "requirements"
if not FOLDER.is_dir():
    pytest.skip("the deployment is not part of the wheel", allow_module_level=True)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IMAGES = {
    "service": "service",
    "service-gpu": "gpu",
    "training": "training",
}  # Dockerfile -> extra and file of its lock
# Both kinds of machine that the images are built for.
MACHINES = [
    {
        "python_version": "3.11",
        "python_full_version": "3.11.14",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "posix",
        "extra": "",
    }
    for machine in ("x86_64", "aarch64")
]


def entries(name: str) -> list[str]:
    """The requirements of a file, each with its hashes on one line."""
    lines = [line for line in (FOLDER / f"{name}.txt").read_text().splitlines() if not line.strip().startswith("#")]
    return [entry for entry in "\n".join(lines).replace("\\\n", " ").splitlines() if entry.strip()]


def locked(name: str, machine: dict[str, str]) -> dict[str, str]:
    """Package -> version that a machine installs from a file."""
    found: dict[str, str] = {}
    for entry in entries(name):
        requirement = Requirement(entry.partition(" --hash")[0].strip())
        if requirement.marker is None or requirement.marker.evaluate(machine):
            [specifier] = requirement.specifier
            assert specifier.operator == "=="
            package = canonicalize_name(requirement.name)
            assert package not in found, f"{package} is there twice"
            found[package] = specifier.version
    return found


def wanted(extra: str) -> list[Requirement]:
    """What pyproject.toml asks for, with Segue's own extras resolved."""
    project = PROJECT["project"]
    lines = list(project["optional-dependencies"][extra])
    found = [Requirement(line) for line in project["dependencies"]]
    while lines:
        requirement = Requirement(lines.pop())
        if requirement.name == "segue":
            lines += [line for one in requirement.extras for line in project["optional-dependencies"][one]]
        else:
            found.append(requirement)
    return found


def test_every_image_has_a_lock() -> None:
    assert {path.stem for path in (ROOT / "docker").glob("*.Dockerfile")} == set(IMAGES)
    assert {path.stem for path in FOLDER.iterdir()} == {*IMAGES.values(), "build"}


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine["platform_machine"])
@pytest.mark.parametrize("extra", IMAGES.values())
def test_the_lock_has_all_that_the_project_asks_for_in_its_range(extra: str, machine: dict[str, str]) -> None:
    versions = locked(extra, machine)
    for requirement in wanted(extra):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is missing: make lock"
        assert requirement.specifier.contains(version), f"{requirement}, and {version} is locked: make lock"


def test_what_builds_the_wheel_is_locked() -> None:
    versions = locked("build", MACHINES[0])
    for line in PROJECT["build-system"]["requires"]:
        assert Requirement(line).specifier.contains(versions[Requirement(line).name])


@pytest.mark.parametrize("name", [*IMAGES.values(), "build"])
def test_every_file_is_told_by_its_hash_and_no_index_is_named(name: str) -> None:
    for entry in entries(name):
        words = entry.split("--hash=")
        assert len(words) > 1, entry
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", word.strip()) for word in words[1:]), entry
    text = (FOLDER / f"{name}.txt").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash)", text, flags=re.MULTILINE), "an option such as --index-url"


@pytest.mark.parametrize(("image", "extra"), IMAGES.items())
def test_a_dockerfile_installs_from_the_lock_and_nothing_else(image: str, extra: str) -> None:
    text = (ROOT / "docker" / f"{image}.Dockerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip (?:install|wheel) [^&\n]*", text)
    assert len(installs) == 4
    for command in installs:
        from_lock = "--require-hashes" in command and "--only-binary :all:" in command
        assert from_lock or "--no-deps" in command, command
    assert list(re.findall(r"-r (\S+)", text)) == ["build.txt", f"{extra}.txt"]
