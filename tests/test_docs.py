"""The documents say what is there: commands, settings, endpoints, manifest fields, the tree."""

import re
from pathlib import Path

import pytest

from segue.cli import segue
from segue.release import Manifest

ROOT = Path(__file__).parents[1]
if not (ROOT / "docs").is_dir():
    pytest.skip("the documents are not part of the wheel", allow_module_level=True)

README = (ROOT / "README.md").read_text(encoding="utf-8")


def doc(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def test_the_readme_lists_every_command() -> None:
    listed = set(re.findall(r"^\| `segue ([\w-]+)` \|", README, flags=re.MULTILINE))
    assert listed == set(segue.commands)


def test_every_command_line_in_the_documents_uses_options_that_exist() -> None:
    texts = [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))]
    for text in texts:
        for command, rest in re.findall(rf"segue ({'|'.join(segue.commands)})\b([^`\n]*)", text):
            if command == "keys":
                continue  # its options belong to the commands below it
            known = {option for parameter in segue.commands[command].params for option in parameter.opts}
            known |= {option for parameter in segue.commands[command].params for option in parameter.secondary_opts}
            for option in re.findall(r"(?<!\S)(--[a-z-]+)", rest.partition("#")[0]):
                assert option in known, f"segue {command} {option}"


def test_the_tree_in_the_readme_names_what_is_there() -> None:
    tree = re.findall(r"^    ([\w/]+)/ +\S", README, flags=re.MULTILINE)
    for folder in tree:
        assert (ROOT / folder).is_dir(), folder
    top = {path.name for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert top <= {folder.partition("/")[0] for folder in tree}


def test_links_lead_somewhere() -> None:
    for source, text in [(ROOT, README), *((path.parent, path.read_text()) for path in (ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
            assert (source / target).exists(), target


def test_every_setting_is_documented() -> None:
    pytest.importorskip("pydantic_settings")
    from service.settings import Settings

    listed = dict(re.findall(r"^\| `SEGUE_(\w+)` \| ([^|]*) \|", doc("operate/settings"), flags=re.MULTILINE))
    assert {name.lower() for name in listed} == set(Settings.model_fields)


def test_every_key_of_a_policy_is_documented() -> None:
    from segue.policy import Boost, Exploration, Pin, Policy, read_policy

    page = (ROOT / "docs" / "how-to" / "policies.md").read_text()
    keys = set(re.findall(r"`([\w.]+)`", page.partition("## Keys")[2].partition("## Order")[0]))
    for kind in (Policy, Boost, Pin):
        assert {field.alias or name for name, field in kind.model_fields.items()} - {"exploration"} <= keys
    assert {f"exploration.{name}" for name in Exploration.model_fields} <= keys
    example = ROOT / "docs" / "radio.toml"
    assert f"```toml\n{example.read_text()}```" in page
    assert read_policy(example).has_steps


def test_every_manifest_field_is_documented() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|", doc("release-format").partition("## index.json")[0], flags=re.MULTILINE))
    assert listed >= set(Manifest.model_fields)


def test_every_index_fact_is_documented() -> None:
    pytest.importorskip("faiss")
    from index.tuning import IndexFacts

    section = doc("release-format").partition("## index.json")[2]
    assert set(IndexFacts.model_fields) <= set(re.findall(r"`(\w+)`", section))


def test_every_metric_is_documented() -> None:
    from segue.ranking_metrics import METRICS

    for name in METRICS:
        assert name in doc("evaluation") or name.startswith("HR@"), name


def test_the_table_of_serving_is_the_one_that_was_measured() -> None:
    benchmarks = ROOT / "benchmarks"
    assert (benchmarks / "results" / "serving.md").read_text() in (benchmarks / "README.md").read_text()


def test_the_readme_is_a_page_or_two() -> None:
    assert len(README.splitlines()) <= 130


def test_the_pages_on_operations_are_short_and_listed() -> None:
    pages = sorted((ROOT / "docs" / "operate").glob("*.md"))
    listed = re.findall(r"\]\(operate/(\w+\.md)\)", doc("operations"))
    assert sorted(listed) == [page.name for page in pages]
    assert all(len(page.read_text(encoding="utf-8").splitlines()) <= 300 for page in pages)


def test_no_document_is_unfinished() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert "@@" not in path.read_text(encoding="utf-8"), path
