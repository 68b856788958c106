"""What `benchmarks.serving.run` measured, as a plot of one size and a table of all."""

from pathlib import Path
from typing import Any


def plot(result: dict[str, Any], file: Path) -> None:
    """Latency against offered load, below capacity."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    points = [one for one in result["offered"] if one["share"] <= 1]
    for name in ("p50_ms", "p90_ms", "p99_ms"):
        axes.plot([one["rate"] for one in points], [one[name] for one in points], "o-", label=name[:3])
    axes.axvline(result["sum_of_parts_per_s"], color="grey", linestyle=":", label="sum of the parts")
    axes.set(
        xlabel="offered requests/s", ylabel="latency, ms", yscale="log", title=f"{result['tracks']:,} tracks, one core"
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def table(results: list[dict[str, Any]]) -> str:
    """The figures of every size, as Markdown."""
    lines: list[tuple[str, Any]] = [
        ("tracks", lambda r: f"{r['tracks']:,}"),
        ("index, MiB", lambda r: f"{r['index']['kind']}, {r['index_mib']:,}"),
        ("recall@20 of what was served", lambda r: r["recommend"]["recall@20"]),
        ("equal to one at a time", lambda r: r["recommend"]["equal_to_one_at_a_time"]),
        *(
            (f"{call}: per s; p50, p90, p99 ms", lambda r, scenario=scenario: _figures(r[scenario]))
            for scenario, call in (
                ("recommend", "GET recommendations"),
                ("report", "POST events"),
                ("report_and_recommend", "POST events?recommend=20"),
                ("at_300_per_s", "GET recommendations at 300/s"),
            )
        ),
        ("encode, search: us each, in eights", lambda r: _parts(r["parts"])),
        ("FastAPI, a constant: per s", lambda r: f"{r['constant']['per_s']:,.0f}"),
        ("FastAPI and one Redis read: per s", lambda r: f"{r['one_read']['per_s']:,.0f}"),
        ("the naive service: per s", lambda r: f"{r['naive']['per_s']:,.0f}" if "naive" in r else "-"),
        ("GET to the sum of its parts", lambda r: r["ratios"]["recommend to sum of parts"]),
        ("GET to the naive service", lambda r: r["ratios"].get("recommend to naive", "-")),
        ("ready after, s", lambda r: r["ready_s"]),
        ("proportional MiB: one worker, two", _workers),
        ("capacity: offered load with p99 within 20 ms, per s", lambda r: f"{r['capacity_per_s']:,}"),
        ("at 80 % of it for 10 minutes: failures; p99 ms, first and last minute; MiB", _soak),
        ("at twice the closed loop's rate: per s, p99 ms", lambda r: _overload(r["offered"][-1])),
        ("commit", lambda r: r["commit"]),
    ]
    rows = [f"| {name} | " + " | ".join(str(figure(one)) for one in results) + " |" for name, figure in lines]
    rows.insert(1, "|---|" + "---|" * len(results))
    return "\n".join(rows) + "\n"


def _figures(run: dict[str, Any]) -> str:
    return f"{run['per_s']:,.0f}; {run['p50_ms']:.1f}, {run['p90_ms']:.1f}, {run['p99_ms']:.1f}"


def _parts(parts: dict[str, float]) -> str:
    return f"{parts['encode_us_in_8']:.0f}, {parts['search_us_in_8']:.0f}"


def _workers(result: dict[str, Any]) -> str:
    return f"{result['memory_of_one_worker']['pss_mib']:,}, {result['memory_of_two_workers']['pss_mib']:,}"


def _soak(result: dict[str, Any]) -> str:
    minutes = result["soak"]
    if not minutes:
        return "-"
    first, last = minutes[0], minutes[-1]
    failures = sum(sum(minute["failures"].values()) for minute in minutes)
    return f"{failures}; {first['p99_ms']:.1f}, {last['p99_ms']:.1f}; {first['pss_mib']:,}, {last['pss_mib']:,}"


def _overload(run: dict[str, Any]) -> str:
    return f"{run['per_s']:,.0f}, {run['p99_ms']:,.0f}"
