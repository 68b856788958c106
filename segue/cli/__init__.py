"""The command line. It may import every package, and no package imports it.

Commands import training and serving code when they run, so that `--help` is fast. Invalid input ends with one line on
stderr and exit code 2.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from types import FrameType

import click

from segue.cli.data import prepare, simulate
from segue.cli.demo import demo
from segue.cli.describe import describe
from segue.cli.evaluate import compare
from segue.cli.experiments import reproduce, tune
from segue.cli.off_policy import off_policy
from segue.cli.serve import keys, openapi, recommend, serve
from segue.cli.terminal import escaped, say
from segue.cli.top import top
from segue.cli.train import evaluate, index, train
from segue.errors import SegueError

_EXTRA_OF = {
    "altair": "training",
    "implicit": "training",
    "jinja2": "training",
    "markupsafe": "training",
    "onnx": "training",
    "onnxscript": "training",
    "optuna": "training",
    "scipy": "training",
    "sklearn": "training",
    "threadpoolctl": "training",
    "tomli_w": "training",
    "torch": "training",
    "vl_convert": "training",
    "faiss": "service",
    "fastapi": "service",
    "httptools": "service",
    "httpx": "service",
    "onnxruntime": "service",
    "orjson": "service",
    "prometheus_client": "service",
    "pydantic_settings": "service",
    "redis": "service",
    "starlette": "service",
    "structlog": "service",
    "uvicorn": "service",
    "yaml": "service",
    "ray": "ray",
    "tensorboard": "tensorboard",
    "opentelemetry": "tracing",
}


_UNBROKEN_HYPHEN = "\u2011"


class _WholeNames(click.HelpFormatter):
    """Help without line breaks at the hyphen of a name such as `vmis-knn`."""

    def write_text(self, text: str) -> None:
        """Write a paragraph."""
        super().write_text(text.replace("-", _UNBROKEN_HYPHEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write options or commands and their descriptions."""
        super().write_dl([(name, text.replace("-", _UNBROKEN_HYPHEN)) for name, text in rows], col_max, col_spacing)

    def getvalue(self) -> str:
        """Return the text."""
        return super().getvalue().replace(_UNBROKEN_HYPHEN, "-")


click.Context.formatter_class = _WholeNames


class _InOrderOfUse(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (the signature of click)
        """Return the names in the order of use, not of the alphabet."""
        return list(self.commands)


@click.group(
    cls=_InOrderOfUse,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Run `segue COMMAND --help` for the options and an example of a command.",
)
@click.version_option(metadata.version("segue"), prog_name="segue")
def segue() -> None:
    """Recommend the next track from plays and skips.

    To try Segue on synthetic data, run `segue demo`. For your own listening logs, run prepare, train, evaluate and
    serve, in this order.

    Results are tables on a terminal and tab-separated lines when piped, in a stable format. With --json, they are JSON.
    """


for _command in (
    demo,
    simulate,
    prepare,
    describe,
    train,
    tune,
    evaluate,
    compare,
    reproduce,
    index,
    recommend,
    serve,
    keys,
    top,
    off_policy,
    openapi,
):
    segue.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:  # noqa: PLR0911 (one for each exit code)
    """Run one command and return its exit code."""
    _reduce_openmp_spinning()
    try:
        with _children_ignore_the_current_folder(), _termination_interrupts():
            result = segue.main(arguments, prog_name="segue", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        return _fail(f"{error.format_message()}{_set_hint(error)}", 2)
    except SegueError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _fail(f"{error.name} is not installed: in your clone of Segue, run `pip install '.[{extra}]'`", 2)
    except (click.Abort, KeyboardInterrupt) as stop:
        # training.checkpoint says how to resume
        message = str(stop.__cause__ or "") if isinstance(stop, click.Abort) else str(stop)
        return _fail(message or "interrupted", 130)
    except (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}: choose another path", 2)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe, such as `head`, has closed it
        return 0
    return result if isinstance(result, int) else 0


def _set_hint(error: click.ClickException) -> str:
    """`segue train --epochs 3` is a usual first try; training options are given with --set."""
    if (
        not isinstance(error, click.NoSuchOption)
        or error.ctx is None
        or error.ctx.command.name not in ("train", "tune")
    ):
        return ""
    from training.registry import MODELS

    name = error.option_name.lstrip("-").replace("-", "_")
    if not any(name in model.options.model_fields for model in MODELS.values()):
        return ""
    return f" Set training options with --set {name}=VALUE."


def _reduce_openmp_spinning() -> None:
    """Let idle threads of torch, FAISS and scikit-learn sleep after microseconds of spinning.

    GNU OpenMP reads the variable when it is loaded. Its default is milliseconds of spinning, which takes most of the
    time if other programs use the processors (benchmarks/README.md). A value that you have set stays.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "3000"


@contextlib.contextmanager
def _children_ignore_the_current_folder() -> Iterator[None]:
    """Keep the current folder off the import path of Python processes that the command starts.

    `python -c` (multiprocessing's fork server) and `python -m` put it first. A folder named `training`, `service` or
    `index` in it would then be imported instead of Segue's package. A value that you have set stays.
    """
    if "PYTHONSAFEPATH" in os.environ:
        yield
        return
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        os.environ.pop("PYTHONSAFEPATH", None)


@contextlib.contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that a command also stops the processes that it has started."""

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signature of a signal handler)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets signal handlers in the main thread only
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int) -> int:
    say(f"segue: {' '.join(escaped(message).split())}")
    return code
