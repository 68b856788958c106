"""The tables of benchmarks/README.md, from the result files: `python -m benchmarks.gpu.table` writes them there."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu import goals
from benchmarks.gpu.facts import ROOT
from benchmarks.gpu.goals import Results
from benchmarks.gpu.plan import STEPS
from benchmarks.gpu.runner import read

RESULTS: Final = ROOT / "benchmarks" / "results"
README: Final = ROOT / "benchmarks" / "README.md"
BEGIN: Final = "<!-- gpu-check: begin; written by python -m benchmarks.gpu.table -->"
END: Final = "<!-- gpu-check: end -->"
NOTHING: Final = "Not measured: no card was at hand.\n"


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """The result files of a folder by step, without those that are not there."""
    found = {step.name: read(folder / f"gpu_{step.name.replace('-', '_')}.json") for step in STEPS}
    return {name: content for name, content in found.items() if content is not None}


def page(results: Results, *, dry_run: bool = False) -> str:
    """All tables. Results of dry runs are left out unless `dry_run`, which the page then says."""
    results = {name: content for name, content in results.items() if content["dry_run"] == dry_run}
    if not results:
        return NOTHING
    done = {name: content["result"] for name, content in results.items() if "failed" not in content}
    parts = ["A dry run on a CPU with small sizes: none of these figures is one of a GPU.\n"] if dry_run else []
    parts += [_conditions(results, done), _steps(results)]
    if not dry_run:
        parts.append(_table(("goal", "found", ""), [(g.text, g.found, _verdict(g.met)) for g in goals.goals(results)]))
    if any(name.startswith("index-") for name in done):
        parts += [_flat(done), _kinds(done)]
    if any(name.startswith("service-") for name in done):
        parts.append(_services(done))
    if "training" in done:
        parts.append(_training(done["training"]))
    if "training-run" in done:
        parts.append(_training_run(done["training-run"]))
    return "\n".join(parts)


def filled(text: str, content: str) -> str:
    """A document with the part between the markers replaced. Raises ValueError where it has no markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{content}\n{END}{after}"


def write(file: Path, content: str) -> None:
    """Replace the part of a file between the markers."""
    file.write_text(filled(file.read_text(encoding="utf-8"), content), encoding="utf-8")


def _verdict(met: bool | None) -> str:
    return {True: "met", False: "missed", None: "not measured"}[met]


def _conditions(results: Results, done: dict[str, Any]) -> str:
    commits = sorted({content["commit"] for content in results.values()})
    card = next((content["card"] for content in results.values() if content["card"]), None)
    parts = [f"Commit {', '.join(commits)}"]
    if card:
        parts.append(f"{card['name']}, driver {card['driver_version']}, {card['memory.total']} MiB")
    environment = done.get("environment")
    if environment:
        parts += [f"{name} {version}" for name, version in environment["packages"].items()]
        parts.append(f"CUDA {environment['torch']['cuda']} (torch)")
        machine = environment["machine"]
        parts.append(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}")
        parts.append(f"copies within the device's memory move {environment['copy_bytes_per_s'] / 1e9:,.0f} GB/s")
    return "; ".join(parts) + ".\n"


def _steps(results: Results) -> str:
    lines = []
    for name, content in results.items():
        card = content["card"]
        most = content["card_mib"]["most"]
        share = f"{most / int(card['memory.total']):.2f}" if card and most is not None else "-"
        outcome = f"failed: {content['failed']}".replace("|", "/") if "failed" in content else "done"
        lines.append((name, f"`{content['command']}`", f"{content['seconds']:.0f}", _number(most), share, outcome))
    return _table(("step", "command", "s", "card memory at most, MiB", "of the card's", ""), lines)


def _flat(done: dict[str, Any]) -> str:
    """Flat search in half precision by batch size, each catalogue."""
    lines = [
        (
            f"{result['tracks']:,}",
            str(row["batch"]),
            f"{row['device_ms']:.3f}",
            f"{row['whole_ms']:.3f}",
            f"{row['queries_per_s']:,.0f}",
            f"{row['read_share']:.3f}",
            f"{row['moved_share']:.3f}",
        )
        for result in _catalogues(done)
        for row in result["kinds"]["flat"]["batches"]
    ]
    head = (
        "tracks",
        "batch",
        "FAISS, ms",
        "search, ms",
        "queries/s",
        "index read, of the copy bandwidth",
        "with scores",
    )
    return _table(head, lines)


def _kinds(done: dict[str, Any]) -> str:
    """Every kind: what it takes, and queries a second at the largest batches beside the CPU's."""
    lines = []
    for result in _catalogues(done):
        for kind, found in result["kinds"].items():
            alone, most = found["batches"][0], max(found["batches"], key=lambda row: float(row["queries_per_s"]))
            cpu = max((row["queries_per_s"] for row in found["cpu"]), default=None)
            lines.append(
                (
                    f"{result['tracks']:,}",
                    kind,
                    f"{found['recall_at_20']:.4f}",
                    f"{alone['whole_ms']:.3f}",
                    f"{most['queries_per_s']:,.0f} ({most['batch']})",
                    _number(cpu),
                    _number(found["card_mib"]),
                    f"{found['build_s']:.1f}",
                    f"{found['open_s']:.1f}",
                )
            )
    head = ("tracks", "kind", "recall@20", "ms alone", "queries/s at most (batch)", "CPU, the same index")
    return _table((*head, "card MiB", "build on CPU, s", "copy to the card, s"), lines)


def _services(done: dict[str, Any]) -> str:
    lines = []
    for name, result in done.items():
        if not name.startswith("service-"):
            continue
        for device in ("cpu", "gpu"):
            one = result[device]
            for load in one["loads"]:
                batches = ", ".join(
                    f"{float(size):g}: {share:.2f}" for size, share in load["batches"].items() if share >= 0.005
                )
                lines.append(
                    (
                        f"{result['tracks']:,}",
                        device,
                        str(load["connections"]),
                        f"{load['per_s']:,.0f}",
                        f"{load['p50_ms']:.1f}",
                        f"{load['p99_ms']:.1f}",
                        f"{one['recall_at_20']:.4f}",
                        batches,
                        _number(one["card_mib"]),
                    )
                )
    head = ("tracks", "index on", "connections", "requests/s", "p50, ms", "p99, ms", "recall@20")
    return _table((*head, "share of batches up to a size", "card MiB"), lines)


def _training(result: dict[str, Any]) -> str:
    lines = []
    for one in result["variants"]:
        known = "failed" not in one
        lines.append(
            (
                str(one["batch_size"]),
                one["precision"],
                "yes" if one["compiled"] else "no",
                f"{one['step_ms']:.2f}" if known else one["failed"].replace("|", "/"),
                f"{one['sessions_per_s']:,.0f}" if known else "-",
                f"{one['bandwidth_share']:.4f}" if known else "-",
                f"{one['extrapolated_s']:,.0f}" if known else "-",
            )
        )
    head = ("batch", "precision", "torch.compile", "step, ms", "sessions/s", "of the copy bandwidth", "all epochs, s")
    profile = result["profile"]
    shares = ", ".join(f"{name} {share:.2f}" for name, share in profile["phases"].items())
    said = f"Shares of a step on the host: {shares}."
    if "kernels_ms" in profile:
        kernels = ", ".join(f"`{name}` {ms:.3f}" for name, ms in list(profile["kernels_ms"].items())[:5])
        said += f" The card is busy {profile['busy_share']:.2f} of the time; longest kernels, ms a step: {kernels}."
        said += f" At most {result['most_allocated_bytes'] / 2**30:.1f} of {result['card_bytes'] / 2**30:.0f} GiB."
    intro = f"{result['sessions']:,} sessions, {result['plays']:,} plays, {result['tracks']:,} tracks, skip loss:\n\n"
    return f"{intro}{_table(head, lines)}\n{said}\n"


def _training_run(result: dict[str, Any]) -> str:
    rates = result["sessions_per_s"]
    rate = f", {sum(rates) / len(rates):,.0f} sessions/s" if rates else ""
    return (
        f"The whole training, validation included: {result['epochs_done']} of {result['epochs']} epochs in "
        f"{result['seconds']:,.0f} s with batches of {result['batch_size']}, {result['precision']}{rate}; all epochs "
        f"{_number(result['whole_s'])} s.\n"
    )


def _catalogues(done: dict[str, Any]) -> list[dict[str, Any]]:
    found = [result for name, result in done.items() if name.startswith("index-")]
    return sorted(found, key=lambda result: int(result["tracks"]))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]
    return "\n".join(rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables into benchmarks/README.md; with --check say whether they are there already."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.table", description=(__doc__ or "").strip())
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of gpu_*.json")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the tables are others")
    chosen = parser.parse_args(arguments)
    content, text = page(read_all(chosen.results)), README.read_text(encoding="utf-8")
    if chosen.check:
        return 0 if filled(text, content) == text else 1
    write(README, content)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
