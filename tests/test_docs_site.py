"""The documentation site: it builds strictly, its reference is the code, its tutorial is what comes out."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Literal

import pytest
import yaml

pytest.importorskip("material", reason="the documents are not part of the wheel")

from docs.site import figures, hooks, http_reference, plays, reference, spotify_history, walk
from segue.cli import segue
from service.settings import Settings
from training.data.describe.description import Description
from training.registry import MODELS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: a broken link or a page that is not in the navigation is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
class TestSite:
    def test_no_page_takes_anything_from_elsewhere(self, site: Path) -> None:
        pages = [page for page in site.rglob("*.html") if page.name != "report.html"]
        assert len(pages) > 25
        for page in pages:
            text = page.read_text(encoding="utf-8")
            taken = re.findall(r'<(?:script|img|iframe|source)[^>]*\bsrc="([^"]*)"', text)
            taken += re.findall(r'<link[^>]*\bhref="([^"]*)"', text)
            assert not [address for address in taken if re.match(r"(https?:)?//", address)], page

    def test_every_asked_figure_is_there(self, site: Path) -> None:
        text = (site / "science.html").read_text(encoding="utf-8")
        assert "<!-- results" not in text
        for picture in re.findall(r'src="(results/[^"]*)"', text):
            assert (site / picture).is_file(), picture
        value = json.loads((RESULTS / "synthetic" / "report.json").read_text())["questions"][0]["systems"][
            "gru4rec+nce"
        ]
        assert f"{value['groups']['played']['HR@10']['value']:.3f} [" in text

    def test_the_reports_lie_beside_the_pages(self, site: Path) -> None:
        for name in ("synthetic", "mssd"):
            assert (site / "results" / name / "report.html").read_bytes() == (
                RESULTS / name / "report.html"
            ).read_bytes()

    def test_nothing_of_the_site_is_packaged(self) -> None:
        assert "docs" not in re.findall(r"include = \[(.*)\]", (ROOT / "pyproject.toml").read_text())[0]


# What the theme itself has; everything else on a page is ours.
OF_THE_THEME = {"aria-dialog-name": {"enabled": False}, "landmark-unique": {"enabled": False}}


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The site's address, served from its folder."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium is installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_finds_its_way_and_asks_nobody_else(served: str, scheme: "Literal['light', 'dark']") -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox"])
        page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        faults: list[str] = []
        page.on("request", lambda r: None if r.url.startswith((served, "data:")) else faults.append(r.url))
        page.on("console", lambda message: faults.append(message.text))
        for name in ("index", "science", "reference/http"):
            page.goto(f"{served}/{name}.html")
            found = axe.Axe().run(page, options={"rules": OF_THE_THEME})
            assert found.violations_count == 0, found.generate_report()
        page.keyboard.press("/")
        page.keyboard.type("log_q")
        found = page.locator(".md-search-result__link[href*='science.html']").first
        playwright.expect(found).to_be_visible()
        page.set_viewport_size({"width": 320, "height": 640})
        page.goto(f"{served}/tutorial.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        browser.close()
    assert faults == []


class TestLinks:
    def test_links_are_followed_from_where_a_document_stands_on_the_site(self) -> None:
        for text, source, target, expected in (
            ("[a](docs/operations.md#x)", "README.md", "index.md", "[a](operations.md#x)"),
            ("[a](../../benchmarks/README.md)", "docs/how-to/a.md", "how-to/a.md", "[a](../measurements.md)"),
            ("[a](results/mssd/report.md)", "benchmarks/README.md", "measurements.md", "[a](results/mssd/tables.md)"),
            ("[a](../../training/options.py)", "docs/how-to/a.md", "how-to/a.md", "[a](../reference/options.md)"),
            ("[a](LICENSE)", "README.md", "index.md", "[a](LICENSE.txt)"),
            ("[a](https://example.org/docs/a.md)", "README.md", "index.md", "[a](https://example.org/docs/a.md)"),
        ):
            assert hooks.relinked(text, source, target) == expected


class TestReference:
    def test_it_has_every_command_with_every_option(self) -> None:
        text = reference.commands()
        for name, command in segue.commands.items():
            section = text.partition(f"## segue {name}\n")[2].partition("\n## ")[0]
            assert section, name
            for parameter in command.params:
                for option in (*parameter.opts, *parameter.secondary_opts):
                    assert f"`{option}`" in section or not option.startswith("-"), f"{name} {option}"

    def test_it_has_every_setting_with_its_default(self) -> None:
        rows = dict(re.findall(r"^\| `SEGUE_(\w+)` \| [^|]* \| ([^|]*) \|", reference.settings(), flags=re.MULTILINE))
        assert {name.lower() for name in rows} == set(Settings.model_fields)
        assert rows["PORT"] == f"`{Settings.model_fields['port'].default}`"
        assert rows["RELEASE"] == "needed"
        assert rows["LOG_HASH_KEY"] == "(random)"

    def test_it_has_every_option_of_every_model(self) -> None:
        text = reference.options()
        for name, model in MODELS.items():
            for option, field in model.options.model_fields.items():
                rows = re.findall(rf"^\| `{option}` \| [^|]* \| `?([^|`]*)`? \|", text, flags=re.MULTILINE)
                assert str(field.default).lower() in [row.lower() for row in rows], f"{name} {option}"

    def test_it_has_every_field_of_a_description(self) -> None:
        page = reference.description()
        found = Description.model_json_schema(mode="serialization")
        for name, schema in {"Description": found, **found["$defs"]}.items():
            if "properties" not in schema:
                continue  # any JSON value
            section = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
            for field, facts in schema["properties"].items():
                row = re.search(rf"^\| `{field}` \| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
                assert row, f"{name}.{field}"
                assert row[1] != "any value", f"{name}.{field}"
                assert facts.get("description", "") in row[2], f"{name}.{field}"

    def test_it_has_every_call_and_every_schema(self) -> None:
        text = (ROOT / "openapi.yaml").read_text()
        description = yaml.safe_load(text)
        page = http_reference.http(text)
        for path, methods in description["paths"].items():
            for method, call in methods.items():
                section = page.partition(f"## {method.upper()} {path} {{")[2].partition("\n## ")[0]
                assert section, path
                assert all(f"| {code} |" in section for code in call["responses"])
                assert all(f"| `{parameter['name']}` |" in section for parameter in call.get("parameters", []))
        for name, schema in description["components"]["schemas"].items():
            section = page.partition(f"### {name}\n")[2].partition("\n### ")[0]
            assert all(f"| `{field}` |" in section for field in schema.get("properties", {})), name

    def test_it_has_every_module_that_others_may_build_on(self) -> None:
        for module in reference.MODULES:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
            assert f"::: {module}\n" in f"{reference.python()}\n"


class TestFigures:
    def test_what_is_read_back_is_what_was_written(self) -> None:
        report = json.loads((RESULTS / "synthetic" / "report.json").read_text())["questions"][0]
        found = figures.measured(RESULTS, "synthetic")
        assert [difference.verdict() for difference in found.differences] == [
            d["verdict"] for d in report["differences"]
        ]
        assert (
            found.estimates["sasrec", "played", "HR@1"].value
            == report["systems"]["sasrec"]["groups"]["played"]["HR@1"]["value"]
        )

    def test_the_answer_is_that_of_the_report(self) -> None:
        asked = figures.filled("<!-- results: synthetic answer -->", RESULTS)
        assert asked in (RESULTS / "synthetic" / "report.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize("name", ["synthetic", "mssd"])
    def test_the_skip_measures_are_those_of_the_benchmarks(self, name: str) -> None:
        asked = figures.filled(f"<!-- results: {name} skips -->", RESULTS)
        assert asked in (RESULTS.parent / "README.md").read_text(encoding="utf-8")
        assert "| ngram | " in asked

    def test_what_is_not_there_is_an_error(self) -> None:
        with pytest.raises(KeyError):
            figures.filled("<!-- results: synthetic nothing -->", RESULTS)


class TestTutorial:
    def test_its_log_is_the_invented_one(self) -> None:
        assert plays.CSV.read_text(encoding="utf-8") == plays.plays()

    def test_its_spotify_history_is_the_invented_one(self) -> None:
        with zipfile.ZipFile(spotify_history.ZIP) as archive:
            found = {name.rpartition("/")[2]: archive.read(name) for name in archive.namelist()}
        pdf = found.pop("ReadMeFirst_ExtendedStreamingHistory.pdf")
        assert pdf.startswith(b"%PDF")
        assert {name: json.loads(content) for name, content in found.items()} == spotify_history.files()

    def test_blocks_are_read(self) -> None:
        document = "text\n```console\n$ one\n1\n2\n$ two\n```\n```sh\nthree\n```\n```console\n$ four\n4\n```\n"
        assert walk.blocks(document) == [[("one", "1\n2\n"), ("two", "")], [("four", "4\n")]]

    @pytest.mark.slow
    @pytest.mark.timeout(900)  # half a minute on two idle cores
    def test_what_it_shows_is_what_comes_out(self) -> None:
        assert len(walk.blocks(TUTORIAL)) >= 7
        with walk.shell() as shell:
            for command, shown in (line for block in walk.blocks(TUTORIAL) for line in block):
                found = words_of(shell.run(command))
                alike = (found & words_of(shown)).total()
                assert alike >= 0.8 * max(found.total(), words_of(shown).total()), command


def words_of(text: str) -> Counter[str]:
    """The words of an output. Figures, names of releases and the last of a list may differ between machines."""
    return Counter(re.findall(r"[A-Za-z_&-]{2,}", re.sub(r"sasrec-[0-9a-f]{10}|dataset [0-9a-f]{12}", "", text)))
