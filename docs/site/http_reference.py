"""The HTTP interface as a page of tables, made from openapi.yaml."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from docs.site.reference import table

Schema = Mapping[str, Any]
_BODY = "application/json"


def http(openapi: str) -> str:
    """Every call with its parameters, body and answers, and every schema."""
    description = yaml.safe_load(openapi)
    parts = [
        "# HTTP\n",
        f"{description['info']['summary']} Version {description['info']['version']}, made from "
        "[openapi.yaml](../openapi.yaml), which `segue openapi` prints. Errors are problem documents (RFC 9457), "
        "`application/problem+json`. [API keys](../operations.md#api-keys) says who may call what.\n",
        table(("call", "does"), ([_call_link(m, path), _first(call)] for path, m, call in _calls(description))),
    ]
    for path, method, call in _calls(description):
        parts += _call(path, method, call)
    parts.append("## Schemas\n")
    for name, schema in description["components"]["schemas"].items():
        parts += _schema(name, schema)
    return "\n".join(parts)


def _calls(description: Schema) -> Iterator[tuple[str, str, Schema]]:
    for path, methods in description["paths"].items():
        for method, call in methods.items():
            yield path, method.upper(), call


def _first(call: Schema) -> str:
    return str(call.get("description", "")).strip().partition("\n")[0]


def _heading(method: str, path: str) -> str:
    return f"{method} {path}"


def _call_link(method: str, path: str) -> str:
    return f"[{method} {path}](#{anchor(method, path)})"


def anchor(method: str, path: str) -> str:
    """The id of a call's heading."""
    return "-".join([method.lower(), *(part.strip("{}") for part in path.strip("/").split("/"))])


def _call(path: str, method: str, call: Schema) -> list[str]:
    parts = [
        f"## {_heading(method, path)} {{ #{anchor(method, path)} }}\n",
        f"{inspect.cleandoc(call.get('description', ''))}\n",
    ]
    scopes = [scope for way in call.get("security", []) for scopes in way.values() for scope in scopes]
    parts.append(f"Scope of the key, where keys are set: {', '.join(f'`{s}`' for s in scopes) or 'none needed'}.\n")
    if parameters := call.get("parameters"):
        rows = (
            (f"`{p['name']}`", p["in"], _type(p["schema"]), _default(p), p.get("description", "")) for p in parameters
        )
        parts.append(table(("parameter", "in", "type", "default", "meaning"), rows))
    if body := call.get("requestBody"):
        parts.append(f"Body: {_type(body['content'][_BODY]['schema'])}\n")
    parts.append(table(("answer", "meaning", "body"), (_answer(code, a) for code, a in call["responses"].items())))
    return parts


def _answer(code: str, answer: Schema) -> tuple[str, str, str]:
    bodies = [_type(of["schema"]) for of in answer.get("content", {}).values() if of.get("schema")]
    headers = ", ".join(f"`{name}`" for name in answer.get("headers", {}))
    return code, answer["description"] + (f" (header {headers})" if headers else ""), ", ".join(bodies)


def _default(parameter: Schema) -> str:
    if parameter.get("required"):
        return "needed"
    return f"`{parameter['schema']['default']}`" if "default" in parameter["schema"] else ""


def _schema(name: str, schema: Schema) -> list[str]:
    parts = [f"### {name}\n"]
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
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(_type(choice) for choice in choices if choice.get("type") != "null")
    kind = str(schema.get("type", "any"))
    if kind == "array":
        kind = f"list of {_type(schema.get('items', {}))}"
    if "enum" in schema or "const" in schema:
        kind = ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    limits = [text.format(schema[key]) for key, text in _LIMITS.items() if key in schema]
    return ", ".join([kind, *limits])
