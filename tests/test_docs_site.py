"""What the documentation site is made from: its reference is the code, its examples are what comes out."""

import json
import re
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("material", reason="the documents are not part of the wheel")

from docs.site import figures, hooks, http_examples, http_reference, plays, reference, spotify_history, walk
from segue.cli import segue
from service.settings import Settings
from tests.preloaded import COMMANDS, preloaded
from training.data.describe.description import Description
from training.registry import MODELS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
HTTP = (ROOT / "docs" / "reference" / "http.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


class TestLinks:
    def test_links_are_followed_from_where_a_document_stands_on_the_site(self) -> None:
        for text, source, target, expected in (
            ("[a](docs/operations.md#x)", "README.md", "quick-start.md", "[a](operations.md#x)"),
            ("[a](../../benchmarks/README.md)", "docs/how-to/a.md", "how-to/a.md", "[a](../measurements.md)"),
            ("[a](results/mssd/report.md)", "benchmarks/README.md", "measurements.md", "[a](results/mssd/tables.md)"),
            ("[a](../../training/options.py)", "docs/how-to/a.md", "how-to/a.md", "[a](../reference/options.md)"),
            ("[a](../README.md#x)", "docs/index.md", "index.md", "[a](quick-start.md#x)"),
            ("[a](LICENSE)", "README.md", "quick-start.md", "[a](LICENSE.txt)"),
            ("[a](https://example.org/docs/a.md)", "README.md", "quick-start.md", "[a](https://example.org/docs/a.md)"),
        ):
            assert hooks.relinked(text, source, target) == expected


class TestTables:
    def test_intervals_and_gains_are_not_broken_over_lines(self) -> None:
        row = "| a | 0.470 [0.459, 0.481] | **-0.1 [-0.2, +0.3]** | 0.482 (+1%) | 12 % [9 %, 15 %] |"
        assert hooks.whole_intervals(f"x 1 [2, 3]\n{row}\ny") == (
            "x 1 [2, 3]\n| a | 0.470\xa0[0.459,\xa00.481] | **-0.1\xa0[-0.2,\xa0+0.3]** | 0.482\xa0(+1%) "
            "| 12 % [9 %, 15 %] |\ny"
        )

    def test_links_in_tables_stay(self) -> None:
        row = "| see 1 [2](a.md) |"
        assert hooks.whole_intervals(row) == row


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

    def test_it_has_every_call_with_an_example(self) -> None:
        text = (ROOT / "openapi.yaml").read_text()
        page = http_reference.http(HTTP, text)
        calls = [(path, *of) for path, methods in yaml.safe_load(text)["paths"].items() for of in methods.items()]
        assert len(re.findall(r"^### ", page, re.MULTILINE)) == len(calls)
        for path, method, call in calls:
            section = re.split(r"\n##", page.partition(f"### {method.upper()} {path} {{")[2])[0]
            [(command, _)] = http_examples.examples(section)
            assert re.search(re.sub(r"\{\w+\}", r"[\\w-]+", f":8000{path}['?]"), command), command
            assert re.search(rf"-X {method} ", command, re.IGNORECASE) or method == (
                "post" if "-d" in command else "get"
            )
            for status in call["responses"]:
                assert re.search(rf"^\| {status} \||Errors.*\b{status}\b", section, re.MULTILINE), (path, status)
                assert int(status) < 400 or f"\n| {status} |" in page.partition("## Errors")[2]
            assert all(f"| `{parameter['name']}` |" in section for parameter in call.get("parameters", []))

    def test_it_has_every_schema(self) -> None:
        text = (ROOT / "openapi.yaml").read_text()
        page = http_reference.schemas(text)
        for name, schema in yaml.safe_load(text)["components"]["schemas"].items():
            section = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
            assert section, name
            assert all(f"| `{field}` |" in section for field in schema.get("properties", {})), name

    def test_a_call_that_does_not_exist_is_an_error(self) -> None:
        with pytest.raises(KeyError, match="/nothing"):
            http_reference.http(HTTP + "\n### GET /nothing\n", (ROOT / "openapi.yaml").read_text())

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
        with walk.shell(preloaded(COMMANDS).program) as shell:
            for command, shown in (line for block in walk.blocks(TUTORIAL) for line in block):
                found = words_of(shell.run(command))
                alike = (found & words_of(shown)).total()
                assert alike >= 0.8 * max(found.total(), words_of(shown).total()), command


class TestHttpExamples:
    @pytest.mark.slow
    @pytest.mark.timeout(900)
    @pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
    def test_the_answers_are_those_of_a_service(self) -> None:
        with http_examples.service(segue=preloaded(COMMANDS).program) as shell:
            for command, shown in http_examples.examples(HTTP):
                language, answer = http_examples.answer_to(shell, command)
                if language == "json":
                    assert shape(json.loads(shown)) == shape(json.loads(answer)), command
                else:
                    assert shape(shown) == shape(answer), command

    def test_only_the_last_answer_is_an_error(self) -> None:
        answers = [json.loads(shown) for _, shown in http_examples.examples(HTTP) if shown.startswith("{")]
        assert [answer.get("status") for answer in answers if "title" in answer and "detail" in answer] == [422]
        assert answers[-1]["status"] == 422

    def test_shapes_differ_by_keys_types_and_counts(self) -> None:
        one = {"items": [{"rank": 1, "id": "a"}], "more": None}
        assert shape("204\n") != shape("404\n")
        assert shape('seconds{status="200"} 1.5\n') == shape('seconds{status="200"} 2\n')
        assert shape(one) == shape({"items": [{"rank": 2.5, "id": "b"}], "more": None})
        others: list[dict[str, Any]] = [
            {"items": [{"rank": 1, "id": "a"}]},
            {"items": [{"rank": "1", "id": "a"}], "more": None},
            {"items": [], "more": None},
            {"items": [{"rank": 1, "id": "a"}], "more": 1},
            {"items": [{"rank": 1, "id": "a"}], "more": True},
        ]
        for other in others:
            assert shape(one) != shape(other)

    def test_json_is_put_on_lines_that_fit(self) -> None:
        long = {"a": ["x" * 60, "y" * 60], "b": {"c": 1}}
        text = http_examples.formatted(long)
        assert json.loads(text) == long
        assert max(map(len, text.splitlines())) < 80
        assert http_examples.formatted(["x" * 60, "y" * 60]) == f'["{"x" * 60}",\n "{"y" * 60}"]'
        assert http_examples.formatted({"a": [1, {"b": None}]}) == '{"a": [1, {"b": null}]}'


def shape(value: Any) -> Any:
    """The keys, counts and types of JSON; the words of a text."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shape(part) for part in value]
    if isinstance(value, str) and re.fullmatch(r"\d{3}\n", value):
        return value  # an HTTP status
    if isinstance(value, str) and "\n" in value:
        return re.sub(r"-?[\d.]+(e-?\d+)?", "0", value)
    return "number" if type(value) in (int, float) else type(value).__name__


def words_of(text: str) -> Counter[str]:
    """The words of an output. Figures, names of releases and the last of a list may differ between machines."""
    return Counter(re.findall(r"[A-Za-z_&-]{2,}", re.sub(r"sasrec-[0-9a-f]{10}|dataset [0-9a-f]{12}", "", text)))
