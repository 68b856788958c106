"""What `benchmarks.training.run` measured, as Markdown tables."""

from collections.abc import Iterable, Sequence
from typing import Any

_PHASES = ("data", "encoder", "loss", "backward", "update")


def page(result: dict[str, Any]) -> str:
    """Ours at every size, then peers beside it."""
    parts = [_ours(result["ours"])]
    if any(result["peers"].values()):
        parts.append(_peers(result["peers"]))
    return "\n".join(parts)


def _ours(sizes: dict[str, Any]) -> str:
    lines = []
    for tracks, settings in sizes.items():
        for name, run in settings.items():
            phases = [f"{run['phases_ms'][phase]:.1f}" for phase in _PHASES] if "phases_ms" in run else ["-"] * 5
            lines.append(
                [
                    f"{int(tracks):,}",
                    name,
                    f"{run.get('sessions_per_s', 0):,.0f}",
                    f"{run.get('sessions_per_cpu_s', 0):,.0f}",
                    f"{run.get('step_ms', 0):.1f}",
                    *phases,
                    f"{run.get('bound_ms', 0):.1f}",
                    f"{run.get('share_of_bound', 0):.2f}",
                    f"{run['peak_rss_bytes'] / 2**20:,.0f}",
                ]
            )
    head = [
        "tracks",
        "loss",
        "sessions/s",
        "a CPU second",
        "step, ms",
        *_PHASES,
        "bound, ms",
        "its share",
        "peak MiB",
    ]
    return _table(head, lines)


def _peers(sizes: dict[str, Any]) -> str:
    lines = []
    for tracks, peers in sizes.items():
        for peer, run in peers.items():
            known = "failed" not in run
            lines.append(
                [
                    f"{int(tracks):,}",
                    peer,
                    f"{run['sessions_per_s']:,.1f}" if known else run["failed"],
                    f"{run['sessions_per_cpu_s']:,.1f}" if known else "-",
                    f"{run.get('ours to it, sessions_per_s', 0):,.1f}",
                    f"{run.get('ours to it, sessions_per_cpu_s', 0):,.1f}",
                    f"{run['peak_rss_bytes'] / 2**20:,.0f}",
                    f"{run.get('its memory to ours', 0):.1f}",
                ]
            )
    head = ["tracks", "peer", "sessions/s", "a CPU second", "ours to it", "by CPU time", "peak MiB", "to ours"]
    return _table(head, lines)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]
    return "\n".join(rows) + "\n"
