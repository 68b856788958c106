"""What every command prints: at 80 and 120 columns of a terminal, and piped.

tests/golden/NAME.80.txt, NAME.120.txt and NAME.piped.txt have the output of the commands of CASES[NAME]. After a change
of output, write them anew and read the difference:

    SEGUE_RECORD=1 python -m pytest tests/test_golden.py; git diff tests/golden

Layout and words are compared. `stable` replaces what varies, such as times and the digits of metrics.
The other tests state what holds for every output, whatever the files say.
"""

import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, TypeAlias

import click
import pytest
from rich.cells import cell_len

from segue.cli import segue
from segue.release import Release
from tests.conftest import ServiceProcess
from tests.golden_world import write_logs
from tests.pseudo_terminal import Commands

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

Width: TypeAlias = Literal["80", "120", "piped"]
WIDTHS: Final[tuple[Width, ...]] = ("80", "120", "piped")
GOLDEN: Final = Path(__file__).parent / "golden"
_ADDRESS: Final = r"http://127\.0\.0\.1:\d+\s"

# The commands of each golden file. The order is that of use: a command may read what an earlier one wrote.
CASES: Final[dict[str, tuple[str, ...]]] = {
    "segue": ("",),
    "demo": ("demo --tracks 1000 --sessions 100 --port 0 --no-browser",),
    "simulate": ("simulate --tracks 1000 --sessions 100 --out data/simulated --overwrite",),
    "prepare": ("prepare events plays.csv --tracks tracks.csv --out data/mine --overwrite",),
    "describe": ("describe data/mine",),
    "train": (
        "train data/mine --model sasrec --recipe small.toml --out releases/mine --overwrite",
        "train data/mine --model sasrec --no-nce --recipe small.toml --out releases/plain --overwrite",
    ),
    "train-baselines": (
        "train data/mine --model markov --out releases/markov --overwrite",
        "train data/mine --model vmis-knn --out releases/vmis-knn --overwrite",
    ),
    "tune": ("tune data/mine --model markov --search window=2,5 --trials 2 --out studies/mine",),
    "evaluate": (
        "evaluate releases/markov data/mine --output markov.json",
        "evaluate releases/vmis-knn data/mine --output vmis-knn.json",
    ),
    "compare": ("compare markov.json vmis-knn.json", "compare markov.json vmis-knn.json --html comparison.html"),
    "reproduce": (
        "reproduce data/mine --system markov --system popularity --seeds 1 --split last-play --protocol full --jobs 1 "
        "--out study",
    ),
    "index": ("index releases/plain --kind exact",),
    "recommend": (
        "recommend releases/tiny --play g0-t00 --skip g1-t00 --play nobody -k 3",
        "recommend releases/tiny --play g0-t00 --skip g1-t00 --play g0-t05 -k 3 --repeat never --explain",
        "recommend releases/tiny --play g0-t00 --play g1-t00 -k 4 --max-per-artist 2 --artist-gap 1 --explain",
        "recommend releases/titled --play spotify:track:0000000000000000000001 -k 3",
        "recommend releases/tiny --play nobody -k 2",
        "recommend releases/tiny --sessions sessions.parquet --out lists.parquet -k 5 --overwrite",
    ),
    "serve": (
        "serve releases/tiny --port 0",
        "serve releases/tiny --port 0 --redis-url redis://127.0.0.1:1",
    ),
    "keys": (
        "keys new player --scope client --scope read --file keys.toml",
        "keys new operations-dashboard --scope client --scope read --scope metrics --scope admin --file keys.toml",
        "keys list --file keys.toml",
        "keys revoke player --file keys.toml",
    ),
    "top": ("top SERVICE --once --interval 0.1", "top SERVICE --interval 60"),
    "off-policy": (
        "off-policy events",
        "off-policy events --policy-release releases/tiny",
    ),
    "openapi": ("openapi",),
    "messages": (
        "trian data/mine",
        "prepare plays.csv --out data/other",
        "train data/mine --out releases/other --epochs 3",
        "train data/mine --out releases/other --model gru4rec --set heads=2",
        "train data/mine --out releases/other --set epochs=many",
        "train data/mine --out releases/markov",
        "evaluate data/mine releases/markov",
        "compare releases/markov releases/vmis-knn",
        "index releases/markov",
        "recommend releases/tiny --filter mood:sad",
        "serve releases/tiny --port 99999",
    ),
}
# Commands that go on until they are interrupted, and what they have printed by then.
_UNTIL: Final = {"demo": r"Ctrl-C|" + _ADDRESS, "serve": _ADDRESS, "top": r"Press Ctrl-C to quit"}
# Cases that are run once before: each output is that of a second start, as the epochs of a training vary with the CPU.
_STARTED_BEFORE: Final = {"demo"}
# What a case writes and would otherwise continue, or refuse to write.
_REMOVED_FIRST: Final = {"tune": "studies", "reproduce": "study", "keys": "keys.toml"}
# The case whose files a case reads.
_NEEDS: Final = {
    "describe": "prepare",
    "train": "prepare",
    "train-baselines": "prepare",
    "tune": "prepare",
    "reproduce": "prepare",
    "evaluate": "train-baselines",
    "messages": "train-baselines",
    "compare": "evaluate",
    "index": "train",
}
_TERMINAL_ONLY: Final = {"top SERVICE --interval 60"}  # a screen, which is drawn again after a minute
_FIRST_LINES: Final = {"openapi": 12}
# What `stable` replaces, and by what.
_PLACEHOLDERS: Final[tuple[tuple[str, str | Callable[["re.Match[str]"], str]], ...]] = (
    (r"segue_[\w-]{43}", "segue_" + "k" * 43),
    (r"\b[0-9a-f]{10,64}\b", lambda found: "h" * len(found[0])),
    (r"\d\d:\d\d:\d\d", "##:##:##"),
    (r"\d{4}-\d\d-\d\d", "####-##-##"),
    (r"(127\.0\.0\.1:)\d{4,5}", r"\1#####"),
    (r"\d[\d,]* sessions/s", "# sessions/s"),
    (r"(Ready|Completed) in (\d+ min )?\d+ s", r"\1 in # s"),
    (r"(search_ms|exact_ms|build_s)(\s+)\S+", r"\1\2#"),
    (r"in \d+ of 100", "in ## of 100"),
    (r"[▁▂▃▄▅▆▇]+", lambda found: "▁" * len(found[0])),
    (r"[█▏▎▍▌▋▊▉]+ *", lambda found: "█".ljust(len(found[0]))),  # a bar begins here
    (r"(?<![\d.])\d+\.\d+(?!\d|\.\d)", lambda found: re.sub(r"\d", "#", found[0])),
    (r"(?<![\d#])[+-](?=#)", "±"),  # a difference near 0
    (r"(epoch +\d+/\d+ .*HR@10 #\.####).*?(  # sessions/s)", r"\1 ...\2"),  # which epoch is best varies with the CPU
    (r"(best epoch\s+)\d+", r"\1#"),
)
# Words that only a narrow terminal shows, in place of columns.
_NARROW_WORDS: Final = {"lowered", "most"}


class World:
    """A folder with logs, datasets and releases, and the output of each case in it, run once."""

    def __init__(self, folder: Path, tiny: Path) -> None:
        self.commands = Commands(folder)
        self._folder = folder
        self._tiny = tiny
        self._service: ServiceProcess | None = None
        self._outputs: dict[tuple[str, Width], str] = {}

    def close(self) -> None:
        if self._service is not None:
            self._service.stop()

    def output(self, name: str, width: Width) -> str:
        """Return what the commands of a case print, each after a line with the command."""
        if (name, width) not in self._outputs:
            if (needed := _NEEDS.get(name)) is not None:
                self.output(needed, "piped")
            self._remove(_REMOVED_FIRST.get(name))
            if name in _STARTED_BEFORE and not any(name == case for case, _ in self._outputs):
                self._run(name, CASES[name][0], "piped")
            lines = [line for line in CASES[name] if width != "piped" or line not in _TERMINAL_ONLY]
            self._outputs[name, width] = "\n".join(self._run(name, line, width) for line in lines)
        return self._outputs[name, width]

    def _remove(self, name: str | None) -> None:
        if name is not None and (self._folder / name).is_dir():
            shutil.rmtree(self._folder / name)
        elif name is not None:
            (self._folder / name).unlink(missing_ok=True)

    def _run(self, name: str, line: str, width: Width) -> str:
        arguments = [self._address() if word == "SERVICE" else word for word in shlex.split(line)]
        until = None if "--once" in arguments else _UNTIL.get(name)
        if width == "piped":
            done = self.commands.piped(*arguments, until=until)
            messages = without_logs(done.stderr)
            texts = [done.stdout, f"--- stderr\n{messages}" if messages else ""]
        else:
            done = self.commands.on_terminal(int(width), *arguments, until=until)
            texts = [without_logs(done.stdout)]
        assert done.code == (2 if name in {"messages", "segue"} else 0), texts
        shown = [text for all_text in texts for text in all_text.splitlines()[: _FIRST_LINES.get(name)]]
        return "\n".join([f"$ segue {line}", *shown]) + "\n"

    def _address(self) -> str:
        if self._service is None:
            self._service = ServiceProcess(self._tiny, self._folder / "top", event_log_flush_s=3600)
            with self._service.client() as client:
                for event in ("play", "skip"):
                    body = {"events": [{"type": event, "track_id": "g0-t01"}]}
                    client.post("/sessions/s-1/events", json=body).raise_for_status()
                client.get("/recommendations", params={"session_id": "s-1"}).raise_for_status()
            self._url = str(client.base_url)
        return self._url


def without_logs(text: str) -> str:
    """Leave out the lines of a service's log, which are JSON on a terminal, too."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith('{"'))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_release: Release) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    write_logs(folder, tiny_release)
    made = World(folder, tiny_release.path)
    yield made
    made.close()


def stable(text: str) -> str:
    """Replace what varies between runs and machines by placeholders, which are as wide wherever columns follow."""
    for pattern, placeholder in _PLACEHOLDERS:
        text = re.sub(pattern, placeholder, text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def without_numbers(text: str) -> str:
    """Replace numbers of `segue top`, which are rates and times, by a sign that ends where they end."""
    return re.sub(
        r"( +|\t)[\d#][\d#.,]*?(?=,?\s|,?$)",
        lambda found: f"{found[1]}#" if len(found[1]) == 1 else "#".rjust(len(found[0])),
        text,
        flags=re.M,
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", CASES)
def test_the_output_is_that_of_the_golden_file(world: World, name: str, width: Width) -> None:
    found = stable(world.output(name, width))
    if name == "top":
        found = without_numbers(found)
    file = GOLDEN / f"{name}.{width}.txt"
    if os.environ.get("SEGUE_RECORD"):
        file.write_text(found, encoding="utf-8")
    assert found == file.read_text(encoding="utf-8")


def paths_of(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command, such as `keys`, `new`."""
    if not isinstance(command, click.Group):
        yield path
        return
    for name, child in command.commands.items():
        yield from paths_of(child, (*path, name))


@pytest.mark.parametrize("path", list(paths_of(segue)), ids=" ".join)
def test_every_command_has_golden_files(path: tuple[str, ...]) -> None:
    with_it = [name for name, lines in CASES.items() if any((*line.split(),)[: len(path)] == path for line in lines)]
    assert with_it, f"add a case for `segue {' '.join(path)}` to CASES"
    for name in with_it:
        assert all((GOLDEN / f"{name}.{width}.txt").is_file() for width in WIDTHS)


def test_every_golden_file_has_its_case() -> None:
    assert {file.name for file in GOLDEN.iterdir()} == {f"{name}.{width}.txt" for name in CASES for width in WIDTHS}


def words(text: str) -> set[str]:
    """Return the words of an output, without commands that were run, marks around words and numbers."""
    lines = (line for line in text.splitlines() if not line.startswith("$ "))
    found = (word.strip("`'\".,:;()[]") for line in lines for word in line.split())
    return {word for word in found if re.search(r"[A-Za-z]{2}", word)}


@pytest.mark.parametrize("name", [name for name in CASES if name != "openapi"])  # a document, not a text for a terminal
def test_80_columns_are_enough(world: World, name: str) -> None:
    """No line is longer, no cell is cut by an ellipsis, and no word or name is broken over lines.

    A part of a word is a word that the same output has neither piped nor at 120 columns.
    """
    text = world.output(name, "80")
    lines = [line for line in text.splitlines() if not line.startswith("$ ")]
    assert [line for line in lines if cell_len(line) > 80] == []
    assert "…" not in text
    text, wide, piped = map(stable, (text, world.output(name, "120"), world.output(name, "piped")))
    assert words(text) - words(wide) - words(piped) - _NARROW_WORDS == set()


@pytest.mark.parametrize("path", [(), ("keys",), *paths_of(segue)], ids=" ".join)
def test_80_columns_are_enough_for_help(world: World, path: tuple[str, ...]) -> None:
    narrow, wide = (world.commands.on_terminal(columns, *path, "--help") for columns in (80, 120))
    assert (narrow.code, wide.code) == (0, 0)
    assert [line for line in narrow.stdout.splitlines() if cell_len(line) > 80] == []
    assert words(narrow.stdout) - words(wide.stdout) == set()


@pytest.mark.parametrize("name", CASES)
def test_piped_output_has_no_styles_or_bars(world: World, name: str) -> None:
    text = world.output(name, "piped")
    assert not set(text) & set("\x1b█▉▊▋▌▍▎▏▁▂▃▄▅▆▇─━│┃")
