"""The command line. It composes everything and nothing imports it; stations are imported inside the commands.

A wrong input ends with one line on stderr and exit code 2.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import metadata
from types import FrameType

import click

from segue.cli.data import prepare, simulate
from segue.cli.demo import demo
from segue.cli.evaluate import compare
from segue.cli.experiments import reproduce, tune
from segue.cli.keys import keys
from segue.cli.serve import openapi, recommend, serve
from segue.cli.terminal import escaped, say
from segue.cli.top import top
from segue.cli.train import evaluate, index, train
from segue.errors import SegueError

_EXTRA_OF = {
    "torch": "training",
    "implicit": "training",
    "jinja2": "training",
    "onnx": "training",
    "optuna": "training",
    "scipy": "training",
    "sklearn": "training",
    "tensorboard": "tensorboard",
    "onnxruntime": "service",
    "faiss": "service",
    "fastapi": "service",
    "pydantic_settings": "service",
    "redis": "service",
    "structlog": "service",
    "httpx": "service",
    "ray": "ray",
    "uvicorn": "service",
}


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="One path: prepare, train, evaluate, index, serve. `segue demo` runs it on synthetic data.",
)
@click.version_option(metadata.version("segue"), prog_name="segue")
def segue() -> None:
    """Skip-aware next-track recommendations: from a log of plays and skips to a live service."""


for _command in (
    prepare,
    simulate,
    train,
    evaluate,
    compare,
    tune,
    reproduce,
    index,
    serve,
    keys,
    recommend,
    top,
    openapi,
    demo,
):
    segue.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:  # noqa: PLR0911 (one for each way to end)
    """Run one command and return its exit code."""
    _reduce_openmp_spinning()
    try:
        with _children_ignore_the_current_folder(), _termination_interrupts():
            result = segue.main(arguments, prog_name="segue", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        return _refuse(f"{error.format_message()}{_set_hint(error)}", 2)
    except SegueError as error:
        return _refuse(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _refuse(f"{error.name} is not installed: this command needs `pip install 'segue[{extra}]'`", 2)
    except (click.Abort, KeyboardInterrupt) as stop:
        said = str(stop.__cause__ or "") if isinstance(stop, click.Abort) else str(stop)  # of training.checkpoint
        return _refuse(said or "interrupted", 130)
    except (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}: name another place", 2)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has closed it, as `head` does
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
    """Have threads of torch, FAISS and scikit-learn wait on the processor for microseconds only, then sleep.

    GNU OpenMP reads this as it is loaded. By itself it waits for milliseconds, which with other work on the machine is
    what most of the time goes to (benchmarks/README.md, Training beside other work). What the user has set stays.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "3000"


@contextlib.contextmanager
def _children_ignore_the_current_folder() -> Iterator[None]:
    """Keep the current folder off the import path of Python processes that the command starts.

    `python -c` (multiprocessing's fork server) and `python -m` put it first, where a user's own `training`, `service`
    or `index` would be imported instead of Segue's package. A value that the user has set stays.
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
    """Take SIGTERM as Ctrl-C, so that a command that is told to end ends what it has started."""

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 (what signal.signal calls)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse(message: str, code: int) -> int:
    say(f"segue: {' '.join(escaped(message).split())}")
    return code
