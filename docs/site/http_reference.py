"""The pages on the HTTP API: docs/reference/http.md with what openapi.yaml says of each call, and the schemas."""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from docs.site.reference import table

PAGE: Final = "reference/http.md"
SCHEMAS: Final = "schemas.md"  # beside the page
Schema = Mapping[str, Any]
_BODY: Final = "application/json"
_CALL: Final = re.compile(r"^### ([A-Z]+) (/\S*)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
_GROUP: Final = re.compile(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def http(page: str, openapi: str) -> str:
    """The page with the list of calls, the description and tables of each call, and the list of errors.

    Raises KeyError if the page has a call that openapi.yaml does not have.
    """
    description = yaml.safe_load(openapi)
    page = page.replace("<!-- calls -->", _overview(page))
    page = page.replace("<!-- errors -->", _errors(description))

    def call(found: re.Match[str]) -> str:
        method, path, example = found.groups()
        return _call(method, path, example, description["paths"][path][method.lower()])

    return _CALL.sub(call, page)


def schemas(openapi: str) -> str:
    """Every schema of the bodies."""
    parts = ["# HTTP schemas\n", "The JSON objects of requests and answers of the [HTTP API](http.md).\n"]
    for name, schema in yaml.safe_load(openapi)["components"]["schemas"].items():
        parts += _schema(name, schema)
    return "\n".join(parts)


def anchor(method: str, path: str) -> str:
    """The id of a call's heading."""
    return "-".join([method.lower(), *(part.strip("{}") for part in path.strip("/").split("/"))])


def _overview(page: str) -> str:
    """A table with a row for each group of calls."""
    rows = []
    for title, content in _GROUP.findall(page):
        calls = [f"[{method} {path}](#{anchor(method, path)})" for method, path, _ in _CALL.findall(content)]
        if calls:
            rows.append((f"**{title}**", "<br>".join(calls)))
    return table(("task", "calls"), rows)


def _is_error(status: str) -> bool:
    return int(status) >= 400


def _errors(description: Schema) -> str:
    """A table of all statuses that an error may have."""
    found: dict[str, list[str]] = {}
    for _, _, call in _calls(description):
        for status, answer in call["responses"].items():
            if _is_error(status) and answer["description"] not in found.setdefault(status, []):
                found[status].append(answer["description"])
    return table(("status", "meaning"), ((status, "; ".join(found[status])) for status in sorted(found)))


def _calls(description: Schema) -> Iterator[tuple[str, str, Schema]]:
    for path, methods in description["paths"].items():
        for method, call in methods.items():
            yield path, method.upper(), call


def _call(method: str, path: str, example: str, call: Schema) -> str:
    scopes = [scope for way in call.get("security", []) for scopes in way.values() for scope in scopes]
    parts = [
        f"### {method} {path} {{ #{anchor(method, path)} }}\n",
        f"{inspect.cleandoc(call.get('description', ''))}\n",
        example,
    ]
    if parameters := call.get("parameters"):
        rows = (
            (f"`{p['name']}`", p["in"], _type(p["schema"]), _default(p), p.get("description", "")) for p in parameters
        )
        parts.append(table(("parameter", "in", "type", "default", "meaning"), rows))
    if body := call.get("requestBody"):
        parts.append(f"Body: {_type(body['content'][_BODY]['schema'])}\n")
    answers = {status: answer for status, answer in call["responses"].items() if not _is_error(status)}
    parts.append(table(("answer", "meaning", "body"), (_answer(status, a) for status, a in answers.items())))
    errors = ", ".join(status for status in call["responses"] if _is_error(status))
    parts.append(f"Scope of the key: {', '.join(f'`{s}`' for s in scopes) or 'none'}. [Errors](#errors): {errors}.\n\n")
    return "\n".join(parts)


def _answer(code: str, answer: Schema) -> tuple[str, str, str]:
    bodies = [_type(of["schema"]) for of in answer.get("content", {}).values() if of.get("schema")]
    headers = ", ".join(f"`{name}`" for name in answer.get("headers", {}))
    return code, answer["description"] + (f" (header {headers})" if headers else ""), ", ".join(bodies)


def _default(parameter: Schema) -> str:
    if parameter.get("required"):
        return "needed"
    return f"`{parameter['schema']['default']}`" if "default" in parameter["schema"] else ""


def _schema(name: str, schema: Schema) -> list[str]:
    parts = [f"## {name}\n"]
    if text := schema.get("description"):
        parts.append(f"{text.strip()}\n")
    if values := schema.get("enum"):
        parts.append(f"One of {', '.join(f'`{value}`' for value in values)}.\n")
    if properties := schema.get("properties"):
        needed = schema.get("required", [])
        rows = (
            (f"`{key}`", _type(of), "always" if key in needed else "", of.get("description", ""))
            for key, of in properties.items()
        )
        parts.append(table(("field", "type", "there", "meaning"), rows))
    return parts


_LIMITS = {
    "minimum": "≥ {}",
    "maximum": "≤ {}",
    "exclusiveMinimum": "> {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "pattern": "pattern `{}`",
}


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}]({SCHEMAS}#{name.lower()})"
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(_type(choice) for choice in choices if choice.get("type") != "null")
    kind = str(schema.get("type", "any"))
    if kind == "array":
        kind = f"list of {_type(schema.get('items', {}))}"
    if "enum" in schema or "const" in schema:
        kind = ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    limits = [text.format(schema[key]) for key, text in _LIMITS.items() if key in schema]
    return ", ".join([kind, *limits])
