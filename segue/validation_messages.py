"""What a value should have been, in plain words. pydantic's own messages are about types of Python."""

from collections.abc import Mapping
from typing import Any, Final

from segue.sessions import MAX_ID_LENGTH, REPEAT_EXPECTED, REPEAT_PATTERN, SESSION_ID_PATTERN, TEXT_PATTERN

_FIXED: Final = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "expected a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "expected a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    "string_type": "expected a text",
    "missing": "expected a value",
    "extra_forbidden": "not a known name",
    "path_not_file": "expected an existing file",
}
_BOUNDS: Final = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "of at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "of at most"),
}
_PATTERNS: Final = {
    SESSION_ID_PATTERN: "expected 1 to 128 characters, each a letter from A to Z, a digit, or one of . _ ~ -",
    TEXT_PATTERN: f"expected 1 to {MAX_ID_LENGTH} characters without control characters",
    REPEAT_PATTERN: REPEAT_EXPECTED,
}


def expectation(error: Mapping[str, Any]) -> str:
    """Return what an error of pydantic (`ValidationError.errors()`) expected, such as "expected a whole number"."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _FIXED:
        return _FIXED[kind]
    if kind in _BOUNDS:
        name, word = _BOUNDS[kind]
        bound = context[name]
        return f"expected a number {word} {int(bound) if bound == int(bound) else bound}"
    if kind == "literal_error":
        return f"expected {context['expected']}"
    if kind == "string_pattern_mismatch" and context["pattern"] in _PATTERNS:
        return _PATTERNS[context["pattern"]]
    return str(error["msg"]).removeprefix("Value error, ")
