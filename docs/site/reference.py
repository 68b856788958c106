"""Pages made from the code: commands, settings of the service, options of training, JSON of `describe`, Python."""

import inspect
import re
import types
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import annotated_types
import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from segue.cli import segue
from service.settings import PREFIX, Settings
from training.data.describe.description import Description
from training.options import NeuralOptions, Options
from training.registry import MODELS

# What a program that builds on Segue may import; the other modules are there for these.
MODULES: Final = (
    "segue.client",
    "segue.catalogue",
    "segue.sessions",
    "segue.window",
    "segue.recommend",
    "service.releases.explanation",
    "segue.release",
    "segue.ranking_metrics",
    "segue.errors",
)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def commands() -> str:
    """Every command of `segue`, as its `--help` says."""
    parts = ["# Commands\n", f"{segue.help}\n\nMade from the code, as are the texts of `segue COMMAND --help`.\n"]
    for name, command in segue.commands.items():
        parts += _command(f"segue {name}", command, 2)
    return "\n".join(parts)


def _command(called: str, command: click.Command, level: int) -> list[str]:
    context = click.Context(command, info_name=called)
    usage = " ".join([called, *command.collect_usage_pieces(context)])
    text = inspect.cleandoc(command.help or command.short_help or "")
    parts = [f"{'#' * level} {called}\n", f"{text}\n", f"```text\n{usage}\n```\n"]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    if options:
        parts.append(table(("option", "values", "default", "meaning"), (_option(o, context) for o in options)))
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            parts += _command(f"{called} {name}", inner, level + 1)
    return parts


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str, str]:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    taken = [] if option.is_flag else option.make_metavar(context).strip("[]").split("|")
    default = "needed" if option.required else f"`{option.default}`" if option.show_default is True else ""
    meaning, _, told = (option.help or "").partition("  [default: ")
    default = f"`{told.rstrip(']')}`" if told else default
    return names, ", ".join(f"`{value}`" for value in taken), default, meaning.replace("|", "&#124;")


def settings() -> str:
    """Every setting of the service."""
    intro = (
        "# Settings of the service\n\nEvery setting is an environment variable; flags of "
        "[`segue serve`](commands.md#segue-serve) take precedence. [Settings](../operate/settings.md) says more.\n"
    )
    rows = (_field(f"{PREFIX}{name.upper()}", field) for name, field in Settings.model_fields.items())
    text = f"{intro}\n{table(('variable', 'values', 'default', 'meaning'), rows)}"
    own_names = "|".join(Settings.model_fields)  # a field's sentence names the others as the code does
    return re.sub(rf"`({own_names})`", lambda name: f"`{PREFIX}{name.group(1).upper()}`", text)


def options() -> str:
    """Every option of every model: those that all have, those of all encoders, and each model's own."""
    parts = [
        "# Options of training\n",
        "Set by a recipe (TOML, `--recipe FILE`), by `--set name=value`, or both: `--set` goes first. An unknown name "
        "or a value out of range is an error. Recipes that are shipped: `demo`, `mssd`.\n",
    ]
    by_kind: dict[type[Options], list[str]] = {Options: [], NeuralOptions: []}
    for name, model in MODELS.items():
        by_kind.setdefault(model.options, []).append(name)
    headings: dict[type[Options], str] = {Options: "Every model", NeuralOptions: "Every encoder"}
    for kind, names in by_kind.items():
        own = {name: field for name, field in kind.model_fields.items() if not _inherited(kind, name, by_kind)}
        if own:
            rows = (_field(name, field) for name, field in own.items())
            parts += [
                f"## {headings.get(kind) or ', '.join(f'`{name}`' for name in names)}\n",
                table(("option", "values", "default", "meaning"), rows),
            ]
    return "\n".join(parts)


def _inherited(kind: type[Options], name: str, shown: Iterable[type[Options]]) -> bool:
    """Whether an option, its default included, is that of a class above which is shown as well."""
    above = [other for other in shown if other is not kind and issubclass(kind, other) and name in other.model_fields]
    return any(other.model_fields[name].default == kind.model_fields[name].default for other in above[-1:])


def _field(name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    if field.is_required():
        default = "needed"
    elif field.default_factory is not None:
        default = "(random)"
    elif field.default is None:
        default = ""
    else:
        default = f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
    return f"`{name}`", values(field), default, field.description or ""


def values(field: FieldInfo) -> str:
    """What a field may be, in words."""
    return ", ".join([_kind(field.annotation), *_bounds(field.metadata)])


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([_kind(arguments[0]), *_bounds(arguments[1:])])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in arguments if part is not type(None))
    names = {bool: "true, false", int: "whole number", float: "number", str: "text"}
    return names.get(annotation, "path" if "Path" in getattr(annotation, "__name__", "") else "text")


_SIGNS: Final = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _bounds(metadata: Iterable[Any]) -> list[str]:
    found = []
    for bound in metadata:
        for name, sign in _SIGNS.items():
            if isinstance(bound, getattr(annotated_types, name.capitalize())):
                found.append(f"{sign} {getattr(bound, name)}")
    return found


def description() -> str:
    """Every field of `segue describe --json`."""
    parts = [
        "# JSON of `segue describe`\n\n`segue describe DATASET --json` prints one object, a `Description`. "
        "[Check your log](../how-to/check-your-log.md) says how to read the figures. Rates are shares from 0 to 1.\n"
    ]
    shown: list[type[BaseModel]] = [Description]
    for model in shown:  # grows while it is read: a model is shown below the first one that has it as a field
        rows = []
        for name, field in model.model_fields.items():
            shown += [part for part in _models(field.annotation) if part not in shown]
            rows.append((f"`{name}`", _json_type(field.annotation), field.description or ""))
        for name, computed in model.model_computed_fields.items():
            rows.append((f"`{name}`", _json_type(computed.return_type), computed.description or ""))
        meaning = inspect.cleandoc(model.__doc__ or "")
        parts += [f"## {model.__name__}\n", f"{meaning}\n", table(("field", "type", "meaning"), rows)]
    return "\n".join(parts)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _json_type(annotation: Any) -> str:
    annotation = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        named = [_json_type(part) for part in arguments if part is not type(None)]
        return " or ".join([*named, "null"] if type(None) in arguments else named)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"array of {_json_type(arguments[0])}"
    if origin is dict:
        return f"object of {_json_type(arguments[1])} by name"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {bool: "true, false", int: "whole number", float: "number", str: "text", datetime: "RFC 3339 time"}
    return names.get(annotation, "any value")


def python() -> str:
    """The shared vocabulary, from its docstrings."""
    shown = "\n\n".join(f"::: {module}" for module in MODULES)
    return (
        "# Python\n\nWhat training and serving agree on, for programs that build on Segue: the docstrings of `segue/`. "
        f"Versions below 1.0 may change it.\n\n{shown}\n"
    )
