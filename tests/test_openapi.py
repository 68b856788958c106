"""`openapi.yaml` equals what the app says of itself."""

from pathlib import Path
from typing import Any

import pytest

from service.app import create_app, openapi_yaml
from service.settings import Settings

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    return create_app(Settings(release=Path("unused"))).openapi()


def test_the_committed_file_is_what_the_app_says() -> None:
    committed = (REPOSITORY / "openapi.yaml").read_text(encoding="utf-8")
    assert committed == openapi_yaml(), "the interface has changed: run `segue openapi > openapi.yaml`"


def test_every_call_and_every_field_is_described(description: dict[str, Any]) -> None:
    operations = [operation for path in description["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations) == 31
    for operation in operations:
        assert operation["description"].endswith(".")
        assert all(parameter.get("description") for parameter in operation.get("parameters", []))


def test_errors_are_problem_documents(description: dict[str, Any]) -> None:
    for path in description["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"]
                if status == "503":
                    assert "Retry-After" in response["headers"]
    assert not any("HTTPValidationError" in name for name in description["components"]["schemas"])


def test_every_reference_leads_somewhere(description: dict[str, Any]) -> None:
    def references(node: object) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if "$ref" in node else set()
            return own.union(*map(references, node.values()))
        return set().union(*map(references, node)) if isinstance(node, list) else set()

    defined = {f"#/components/schemas/{name}" for name in description["components"]["schemas"]}
    assert references(description) <= defined
