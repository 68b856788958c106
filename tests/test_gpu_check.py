"""The GPU check: its steps end in time, results are kept, and the tables say what was measured and nothing else."""

import ast
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not part of the wheel", allow_module_level=True)
pytest.importorskip("torch")

from benchmarks.gpu import __main__ as command  # noqa: E402 (after the checks that they are there)
from benchmarks.gpu import device_tests, faiss_functions, goals, one_card, plan, runner, table, training_run  # noqa: E402
from benchmarks.gpu.index_speed import shares  # noqa: E402
from benchmarks.gpu.plan import STEPS, Step  # noqa: E402
from benchmarks.gpu.service_load import formed  # noqa: E402
from benchmarks.gpu.sizes import DRY, FULL  # noqa: E402
from benchmarks.gpu.step_errors import StepFailed  # noqa: E402
from benchmarks.gpu.training_set import drawn, split  # noqa: E402
from tests.stopwatch import Stopwatch  # noqa: E402

# What a step's process does here: it counts its calls, then follows the program in its step's `about`.
PROCESS = """
import json, pathlib, subprocess, sys, time
out, work, program = map(pathlib.Path, sys.argv[1:3] + [sys.argv[3]])
with (work / "calls").open("a") as calls: calls.write("x")
exec(str(program))
"""
GIVES = "out.write_text(json.dumps({'result': {'figure': 3}}))"
FAILS = "out.write_text(json.dumps({'failed': 'no figure'})); sys.exit(1)"


def step(program: str, name: str = "parity", most_s: int = 60) -> Step:
    return Step(name, "none", most_s, program)


def run_of(folder: Path, *, dry_run: bool = False, seconds: float = 100) -> runner.Run:
    def started(one: Step, run: runner.Run, out: Path) -> list[str]:
        return [sys.executable, "-c", PROCESS, str(out), str(run.work), one.about]

    return runner.Run(folder / "results", folder / "work", dry_run, time.monotonic() + seconds, started)


def calls(folder: Path) -> int:
    file = folder / "work" / "calls"
    return len(file.read_text()) if file.is_file() else 0


def quiet(_: str) -> None:
    """Tell nobody."""


class TestSteps:
    def test_a_finished_step_is_kept_and_not_done_again_unless_asked(self, tmp_path: Path) -> None:
        run = run_of(tmp_path)
        assert runner.run_all([step(GIVES)], run, quiet) == []
        content = runner.read(run.file(step(GIVES)))
        assert content is not None
        assert content["result"] == {"figure": 3}
        assert not content["dry_run"]
        assert runner.run_all([step(GIVES)], run, quiet) == []
        assert calls(tmp_path) == 1
        runner.run_all([step(GIVES)], run, quiet, again=True)
        assert calls(tmp_path) == 2

    def test_a_failed_step_says_why_and_is_done_again(self, tmp_path: Path) -> None:
        run, told = run_of(tmp_path), list[str]()
        assert runner.run_all([step(FAILS)], run, told.append) == ["parity"]
        assert told[-1].startswith("parity: failed, no figure, ")
        assert runner.run_all([step(GIVES)], run, quiet) == []
        assert calls(tmp_path) == 2

    def test_a_step_that_leaves_nothing_has_failed(self, tmp_path: Path) -> None:
        content = runner.run_one(step("sys.exit(7)"), self.ready(tmp_path))
        assert content["failed"] == "its process ended with 7 and left no result"

    def test_a_result_of_a_run_before_is_not_taken_for_its_own(self, tmp_path: Path) -> None:
        run = self.ready(tmp_path)
        (run.work / "parity.out.json").write_text(json.dumps({"result": {"figure": 1}}))
        assert "failed" in runner.run_one(step("sys.exit(0)"), run)

    def test_a_step_that_takes_too_long_is_stopped_with_what_it_started(self, tmp_path: Path) -> None:
        program = (
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
            "(work / 'pid').write_text(str(child.pid)); time.sleep(60)"
        )
        with Stopwatch() as watch:
            content = runner.run_one(step(program, most_s=3), self.ready(tmp_path))
            assert content["failed"] == "stopped after 3 s"
        assert watch.seconds < 30
        assert not alive(int((tmp_path / "work" / "pid").read_text()))

    def test_what_a_finished_step_left_running_is_stopped(self, tmp_path: Path) -> None:
        program = (
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
            f"(work / 'pid').write_text(str(child.pid)); {GIVES}"
        )
        assert "failed" not in runner.run_one(step(program), self.ready(tmp_path))
        assert not alive(int((tmp_path / "work" / "pid").read_text()))

    def test_a_step_gets_no_more_than_the_time_that_is_left(self, tmp_path: Path) -> None:
        content = runner.run_one(step("time.sleep(60)", most_s=60), self.ready(tmp_path, seconds=2))
        assert content["failed"] in {"stopped after 2 s", "stopped after 1 s"}

    def test_a_step_is_not_started_without_the_time_it_needs(self, tmp_path: Path) -> None:
        told = list[str]()
        assert runner.run_all([step(GIVES, most_s=60)], run_of(tmp_path, seconds=10), told.append) == ["parity"]
        assert told == ["parity: not started, 10 s are left and it may take 60 s"]
        assert calls(tmp_path) == 0

    def test_results_of_dry_runs_are_not_taken_for_a_cards(self, tmp_path: Path) -> None:
        runner.run_all([step(GIVES)], run_of(tmp_path, dry_run=True), quiet)
        assert not run_of(tmp_path).finished(step(GIVES))
        runner.run_all([step(GIVES)], run_of(tmp_path), quiet)
        assert calls(tmp_path) == 2

    def test_a_damaged_result_is_made_again(self, tmp_path: Path) -> None:
        run = self.ready(tmp_path)
        run.file(step(GIVES)).write_text("{")
        assert runner.run_all([step(GIVES)], run, quiet) == []
        assert run.finished(step(GIVES))

    def test_without_a_card_nothing_else_is_started(self, tmp_path: Path) -> None:
        steps = [step(FAILS, name=STEPS[0].name), step(GIVES, name="parity")]
        assert runner.run_all(steps, run_of(tmp_path), quiet) == [STEPS[0].name, "parity"]
        assert calls(tmp_path) == 1

    @staticmethod
    def ready(folder: Path, seconds: float = 100) -> runner.Run:
        run = run_of(folder, seconds=seconds)
        run.results.mkdir()
        run.work.mkdir()
        return run


def alive(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
            status = Path(f"/proc/{pid}/status").read_text()
        except (ProcessLookupError, FileNotFoundError):
            return False
        if "State:\tZ" in status:  # it has ended; whoever took it over has not asked for its exit code
            return False
        time.sleep(0.1)
    return True


class TestPlan:
    def test_all_bounds_together_are_half_an_hour_and_none_is_longer_than_a_command_may_be(self) -> None:
        assert sum(one.most_s for one in STEPS) <= plan.MOST_S
        assert max(one.most_s for one in STEPS) <= plan.MOST_OF_ONE_S
        assert plan.MOST_S == 30 * 60
        assert FULL.run_s < plan.named("training-run").most_s == plan.named("training-run").least_s

    def test_every_step_has_a_module_with_measure(self) -> None:
        for one in STEPS:
            code = ast.parse((ROOT / "benchmarks" / "gpu" / f"{one.module}.py").read_text())
            assert "measure" in {node.name for node in code.body if isinstance(node, ast.FunctionDef)}, one.name

    def test_a_release_is_made_before_it_is_served_and_steps_are_timed_before_all_are_taken(self) -> None:
        names = [one.name for one in STEPS]
        assert names[0] == "environment"
        for before, after in (("release-large", "service-large"), ("release-small", "service-small")):
            assert names.index(before) < names.index(after)
        assert names.index("training") < names.index("training-run")

    def test_every_file_with_a_test_marked_gpu_is_found(self) -> None:
        found = {file.name for file in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in file.read_text()}
        assert found >= {"test_index.py", "test_fit.py"}
        assert device_tests._MARK == "mark.gpu"

    def test_the_sizes_are_those_of_the_goals(self) -> None:
        assert FULL.catalogues == (600_000, 1_000_000, 10_000_000)
        assert FULL.dimension == 128
        assert (FULL.sessions, FULL.tracks, FULL.epochs) == (600_000, 600_000, 20)
        assert (FULL.batches[0], FULL.batches[-1]) == (1, 1024)
        assert (FULL.device, FULL.torch_device, DRY.device, DRY.torch_device) == ("gpu", "cuda", "cpu", "cpu")


class TestCommand:
    def test_a_dry_run_does_not_write_where_figures_of_a_card_are(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["--dry-run", "--results", str(table.RESULTS), "--only", "environment"]) == 2
        assert "a dry run measures no GPU" in capsys.readouterr().err

    def test_a_dry_step_is_the_same_code_on_the_cpu(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folders = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
        readme = table.README.read_bytes()
        assert (
            command.main(["--dry-run", "--only", "environment", "index-small", "--skip", "environment", *folders]) == 0
        )
        content = runner.read(tmp_path / "results" / "gpu_index_small.json")
        assert content is not None
        assert content["dry_run"]
        assert content["result"]["kinds"].keys() == {"flat", "ivf", "ivf-sq8"}
        assert not (tmp_path / "results" / "gpu_environment.json").exists()
        assert table.README.read_bytes() == readme
        said = capsys.readouterr().out
        assert "none of these figures is one of a GPU" in said
        assert "goals are not judged" in said

    def test_two_processes_that_claim_one_card_are_refused(self, tmp_path: Path) -> None:
        [line] = one_card.measure(DRY, tmp_path).values()
        assert line.startswith("processes 0 and 1 use the same GPU")

    def test_two_processes_that_say_nothing_of_a_card_are_no_refusal(self) -> None:
        for said in (["Traceback\nprocesses use the same GPU (x)", "use the same GPU ("], ["", "use the same GPU ("]):
            with pytest.raises(StepFailed, match="expected a line with"):
                one_card._one_line(said, one_card.SAME_CARD)

    def test_the_traceback_of_torchrun_is_not_that_of_a_process(self) -> None:
        said = ["segue: use the same GPU (x)\nTraceback (most recent call last):"]
        assert one_card._one_line(said, one_card.SAME_CARD, starter=True) == "segue: use the same GPU (x)"


def results(**changes: Any) -> dict[str, dict[str, Any]]:
    """Results of a card that does not exist."""
    card = {"name": "Card", "driver_version": "1.2", "memory.total": "1000"}
    about = {"dry_run": False, "commit": "abc", "command": "run", "card": card, "seconds": 1.0}
    flat = [
        {"batch": b, "device_ms": 1.0, "whole_ms": 2.0, "queries_per_s": 9.0, "read_share": 0.2, "moved_share": share}
        for b, share in ((1, 0.1), (64, 0.5), (1024, 0.7))
    ]
    kind = {"recall_at_20": 1.0, "card_mib": 300, "build_s": 1.0, "open_s": 1.0, "batches": flat, "cpu": []}
    load = {"connections": 32, "per_s": 100.0, "p50_ms": 1.0, "p99_ms": 2.0, "batches": {"1.0": 0.25, "+Inf": 0.0}}
    found: dict[str, dict[str, Any]] = {
        "index-small": {"tracks": 600_000, "kinds": {"flat": kind}},
        "training-run": {
            "batch_size": 64,
            "precision": "float32",
            "epochs": 20,
            "epochs_done": 20,
            "seconds": 599.0,
            "whole_s": 599.0,
            "sessions_per_s": [1.0],
        },
        "service-large": {
            "tracks": 10_000_000,
            "ratio": 2.0,
            "cpu": {"loads": [load], "recall_at_20": 0.95, "card_mib": None},
            "gpu": {"loads": [load], "recall_at_20": 0.99, "card_mib": 3000},
        },
    }
    for path, value in changes.items():
        name, _, key = path.partition("__")
        found[name.replace("_", "-")][key] = value
    return {name: {**about, "card_mib": {"before": 1, "most": 250}, "result": one} for name, one in found.items()}


class TestGoals:
    def test_are_met_at_the_figures_that_were_named(self) -> None:
        assert [goal.met for goal in goals.goals(results())] == [True, True, True]

    def test_are_missed_below_them(self) -> None:
        worse = results(training_run__whole_s=601.0, service_large__ratio=1.99)
        rows = worse["index-small"]["result"]["kinds"]["flat"]["batches"]
        rows[1] = {**rows[1], "moved_share": 0.49}
        assert [goal.met for goal in goals.goals(worse)] == [False, False, False]
        assert "found 0.49 at batches of 64" in goals.lines(worse, dry_run=False)[0]

    def test_more_requests_at_a_lower_recall_are_no_gain(self) -> None:
        worse = results()
        worse["service-large"]["result"]["gpu"]["recall_at_20"] = 0.9
        assert goals.goals(worse)[2].met is False

    def test_without_figures_nothing_is_claimed(self) -> None:
        assert [goal.met for goal in goals.goals({})] == [None, None, None]
        assert all(line.startswith("goal not measured: ") for line in goals.lines({}, dry_run=False))
        assert "extrapolated from 3 epochs" in goals.goals(results(training_run__epochs_done=3))[1].found


class TestTable:
    def test_that_of_the_benchmarks_is_the_one_of_the_results(self) -> None:
        assert table.main(["--check"]) == 0

    def test_without_results_it_says_that_no_card_was_at_hand(self, tmp_path: Path) -> None:
        assert table.page(table.read_all(tmp_path)) == "Not measured: no card was at hand.\n"
        dry = {name: {**content, "dry_run": True} for name, content in results().items()}
        assert table.page(dry) == table.NOTHING

    def test_it_has_every_figure_of_the_goals_with_card_driver_commit_and_command(self) -> None:
        page = table.page(results())
        for text in (
            "Commit abc; Card, driver 1.2, 1000 MiB",
            "`run`",
            "| 0.25 |",
            "| met |",
            "| 600,000 | 64 |",
            "599 s",
        ):
            assert text in page
        assert all(line.count("|") > 2 for line in page.splitlines() if line.startswith("|"))

    def test_a_failed_step_is_a_line_and_has_no_figures(self) -> None:
        found = results()
        del found["index-small"]["result"]
        found["index-small"]["failed"] = "a | b"
        page = table.page(found)
        assert "failed: a / b" in page
        assert "600,000" not in page

    def test_only_what_is_between_the_markers_is_replaced(self, tmp_path: Path) -> None:
        file = tmp_path / "README.md"
        file.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
        for content in ("new\n", "newer\n"):
            table.write(file, content)
            assert file.read_text() == f"before\n{table.BEGIN}\n\n{content}\n{table.END}\nafter\n"
        with pytest.raises(ValueError, match="expected the lines"):
            table.filled("no markers", "new")


class TestFigures:
    def test_shares_of_the_copy_bandwidth(self) -> None:
        # 1,000 tracks of 4 columns are 8,000 bytes, 2 x 5 x 1,000 scores 40,000: at 1 MB/s 8 ms and 48 ms.
        assert shares(1000, 4, 5, 16.0, 1e6) == {"read_share": 0.5, "moved_share": 3.0}

    def test_shares_of_batches_by_size(self) -> None:
        before, after = {"1.0": 10.0, "2.0": 10.0, "+Inf": 10.0}, {"1.0": 11.0, "2.0": 13.0, "+Inf": 14.0}
        assert formed(before, after) == {"1.0": 0.25, "2.0": 0.5, "+Inf": 0.25}
        assert formed(after, after) == {}

    def test_all_epochs_are_extrapolated_from_those_that_ended(self) -> None:
        assert training_run.whole_s([10.0, 20.0], 4) == 60.0
        assert training_run.whole_s([10.0, 20.0], 2) == 30.0
        assert training_run.whole_s([], 2) is None

    @pytest.mark.parametrize(
        ("seconds", "chosen"), [((400, 300, 50, 60), (64, "bfloat16")), ((900, 800, 50, 60), (1024, "float32"))]
    )
    def test_the_papers_batches_are_taken_where_they_end_in_time(
        self, tmp_path: Path, seconds: tuple[int, ...], chosen: tuple[int, str]
    ) -> None:
        names = [(batch, precision) for batch in (64, 1024) for precision in ("float32", "bfloat16")]
        variants: list[dict[str, Any]] = [
            {"batch_size": batch, "precision": precision, "compiled": False, "extrapolated_s": s}
            for (batch, precision), s in zip(names, seconds, strict=True)
        ]
        variants.append({"batch_size": 64, "precision": "float32", "compiled": True, "failed": "no compiler"})
        (tmp_path / "training.out.json").write_text(json.dumps({"result": {"variants": variants}}))
        assert training_run.chosen_variant(tmp_path / "training.out.json", FULL) == chosen

    def test_without_timed_variants_the_papers_batches_are_taken(self, tmp_path: Path) -> None:
        assert training_run.chosen_variant(tmp_path / "none.json", FULL) == (64, "float32")

    def test_the_training_set_has_the_plays_of_mssd(self) -> None:
        sessions = drawn(2000, 500)
        assert len(sessions) == 2000
        assert len(sessions.rows) / 2000 == pytest.approx(15, rel=0.02)
        assert sessions.skipped.mean() == pytest.approx(0.5, abs=0.02)
        assert (sessions.rows.min(), sessions.rows.max()) >= (1, 400)
        training, validation = split(sessions)
        assert (training.ends == sessions.offsets[1:] - 2).all()
        assert (validation.targets == sessions.rows[sessions.offsets[1:] - 2]).all()


class TestFaissFunctions:
    def test_those_of_the_index_are_found(self) -> None:
        used = faiss_functions.used(ROOT / "index")
        assert used >= {"StandardGpuResources", "index_cpu_to_gpu", "ScalarQuantizer.QT_8bit", "IO_FLAG_MMAP_IFC"}
        assert not [name for name in used if "(" in name]

    def test_what_is_missing_or_has_other_parameters_is_named(self) -> None:
        class Faiss:
            class GpuClonerOptions:
                other = 1

            @staticmethod
            def index_cpu_to_gpu(index: object) -> None:
                """Of another signature."""

        names = {"GpuClonerOptions", "index_cpu_to_gpu", "ScalarQuantizer.QT_8bit"}
        assert faiss_functions.missing(Faiss, names) == [
            "ScalarQuantizer.QT_8bit",
            "GpuClonerOptions.useFloat16",
            "index_cpu_to_gpu(provider, device, index, options)",
        ]
