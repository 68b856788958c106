"""`segue top`: a terminal dashboard of a running service."""

import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, Self

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from segue.cli.rates import Snapshot, SnapshotHistory
from segue.cli.terminal import example, facts_table, first_that_fits, print_json, print_table, sparkline, titled
from segue.errors import InputError

FIGURES_S: Final = 10.0  # period of rates and latencies
SKIPS_S: Final = 300.0  # period of skip rates, which need more plays
_TIMEOUT_S: Final = 5.0
_POINTS: Final = 60
_OTHER_LINES: Final = 28  # lines of the screen besides routes and releases
_FEWEST_ROUTES: Final = 2
_TRAFFIC: Final = ("per s", "p50 ms", "p90 ms", "p99 ms", "4xx per s", "5xx per s", "responses")
_NARROWER: Final = (("per s", "p50 ms", "p90 ms", "p99 ms", "5xx per s"), ("per s", "p50 ms", "p99 ms", "5xx per s"))


class NoAnswer(InputError):
    """The service did not return its operations data. This may be temporary."""


@click.command(
    short_help="Watch a running service: traffic, latency, skip rates, Redis.",
    epilog=example("segue top http://127.0.0.1:8000 --interval 2"),
)
@click.argument("url", default="http://127.0.0.1:8000")
@click.option(
    "--key",
    envvar="SEGUE_API_KEY",
    metavar="KEY",
    help="API key with the scope admin, if the service has keys.  [default: SEGUE_API_KEY]",
)
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.1),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Refresh interval in seconds, at least 0.1.",
)
@click.option(
    "--once", is_flag=True, help="Take one sample, print it and exit (default when stdout is not a terminal)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the response of GET /operations as JSON and exit.")
def top(url: str, key: str | None, interval_s: float, once: bool, as_json: bool) -> None:
    """Watch the service at URL (default http://127.0.0.1:8000). Press Ctrl-C to quit.

    Request rates and latencies cover the last 10 seconds, skip rates the last 5 minutes.
    """
    with Service(url, key) as service:
        _show(service, Screen(url), interval_s, once=once, as_json=as_json)


def _show(service: "Service", screen: "Screen", interval_s: float, *, once: bool, as_json: bool) -> None:
    first = service.ask()
    if as_json:
        print_json(first)
        return
    screen.add(first)
    console = Console()
    if once or not console.is_terminal:
        time.sleep(interval_s)
        screen.add(service.ask())
        for table in screen.tables(console.width if console.is_terminal else None):
            print_table(table)
        return
    try:
        _watch(console, screen, service, interval_s)
    except KeyboardInterrupt:
        return  # Ctrl-C quits


def _watch(console: Console, screen: "Screen", service: "Service", interval_s: float) -> None:
    with Live(screen.shown(console.height, console.width), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            try:
                screen.add(service.ask())
            except NoAnswer as error:  # it may be restarting
                screen.fault = str(error)
            live.update(screen.shown(console.height, console.width), refresh=True)


class Service:
    """The client of a service's `GET /operations`."""

    def __init__(self, url: str, key: str | None) -> None:
        """Raises InputError for an invalid address or key."""
        import httpx

        from segue.client_answers import headers_for

        headers = headers_for(url, key)
        self._url = url.rstrip("/")
        self._client = httpx.Client(headers=headers, timeout=_TIMEOUT_S)

    def __enter__(self) -> Self:
        """Return the client. Sends nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._client.close()

    def ask(self) -> Snapshot:
        """Return the response of GET /operations. Raises NoAnswer, or InputError if the key is rejected."""
        import httpx

        try:
            answer = self._client.get(f"{self._url}/operations")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NoAnswer(f"{self._url} does not answer ({error}): is the service running?") from error
        try:
            content = answer.json()
        except ValueError:
            content = None
        if answer.is_success and isinstance(content, dict) and "instance" in content:
            return content
        detail = content.get("detail") if isinstance(content, dict) else None
        if answer.status_code in {401, 403}:
            raise InputError(
                f"{self._url} rejects the request: {detail}; set --key or SEGUE_API_KEY to a key with the scope admin"
            )
        hint = f": {detail}" if detail else ": is this a Segue service?"
        raise NoAnswer(f"{self._url}/operations answers {answer.status_code}{hint}")


class Screen:
    """The tables of the latest snapshots."""

    def __init__(self, url: str) -> None:
        self.fault: str | None = None  # why the latest request failed
        self._url = url
        self._history = SnapshotHistory()
        self._latest: Snapshot = {}
        self._figures: dict[str, Any] = {}
        self._rates: deque[float | None] = deque(maxlen=_POINTS)
        self._slowest: deque[float | None] = deque(maxlen=_POINTS)

    def add(self, snapshot: Snapshot) -> None:
        """Add a snapshot."""
        self.fault = None
        self._history.add(snapshot)
        self._latest = snapshot
        self._figures = self._history.rates_between(FIGURES_S)
        self._rates.append(self._figures["total"]["per_s"])
        self._slowest.append(self._figures["total"]["p99_ms"])

    def shown(self, height: int, width: int) -> Group:
        """Return the whole screen in `height` lines. If they are few, only the busiest routes are shown."""
        head = Text.assemble(
            (" segue top ", "bold reverse"), "  ", (self._url, "bold"), "  ", _clock(self._latest["at"])
        )
        parts: list[Any] = [head, Text(self.fault or "", style="bold red")]
        parts += [
            Text.assemble(("requests/s  ", "dim"), (sparkline(list(self._rates), _POINTS), "cyan")),
            Text.assemble(("p99         ", "dim"), (sparkline(list(self._slowest), _POINTS), "yellow")),
            *self.tables(width, max(_FEWEST_ROUTES, height - _OTHER_LINES - len(self._latest["releases"]))),
            Text("Press Ctrl-C to quit", style="dim"),
        ]
        return Group(*parts)

    def tables(self, room: int | None = None, most_routes: int | None = None) -> list[Table]:
        """Return the tables of traffic, releases, and the state of the service.

        With little `room` (characters), columns of the traffic are omitted. None: no limit.
        """
        traffic = [partial(self._traffic, columns, most_routes) for columns in (_TRAFFIC, *_NARROWER)]
        return [first_that_fits(traffic, room), self._releases(), self._facts()]

    def _traffic(self, columns: Sequence[str], most_routes: int | None) -> Table:
        seconds = self._figures["seconds"]
        title = f"Requests, last {seconds:.0f} s" if seconds is not None else "Requests since start"
        table = titled(title)
        table.add_column("route")
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        lines = sorted(self._figures["routes"], key=lambda line: -(line["per_s"] or 0.0))
        for line in (self._figures["total"], *lines[:most_routes]):
            is_total = line is self._figures["total"]
            cells: dict[str, str | Text] = {
                "per s": _number(line["per_s"]),
                **{f"p{percent} ms": _number(line[f"p{percent}_ms"]) for percent in (50, 90, 99)},
                "4xx per s": _number(line["refused_per_s"]),
                "5xx per s": _alarming(line["errors_per_s"]),
                "responses": f"{line['answered']:,}",
            }
            route = Text("all listener requests" if is_total else line["name"], style="bold" if is_total else "")
            table.add_row(route, *(cells[column] for column in columns))
        return table

    def _releases(self) -> Table:
        table = titled(f"Recommendation outcomes by release, last {SKIPS_S / 60:.0f} min")
        table.add_column("release")
        for name in ("in use", "lists per s", "plays", "played", "skipped"):
            table.add_column(name, justify="right")
        lists = {line["release"]: line["lists_per_s"] for line in self._figures["releases"]}
        for line in self._history.rates_between(SKIPS_S)["releases"]:
            table.add_row(
                Text(line["release"]),
                "yes" if line["in_use"] else "no",
                _number(lists[line["release"]]),
                f"{line['plays']:,}",
                _percent(line["played_rate"]),
                _percent(line["skip_rate"]),
            )
        return table

    def _facts(self) -> Table:
        latest, figures = self._latest, self._figures
        events = latest["events"]
        validation = latest["release"]["evaluation"].get("validation") or {}
        facts: dict[str, Any] = {
            "release": f"{latest['release']['name']} in {latest['release']['folder']}",
            "validation HR@10": validation.get("HR@10", "unknown"),
            "A/B test": experiment_line(latest["experiment"]),
            "sessions": f"{events['sessions']:,} started, {_number(figures['sessions_per_s'])} per s",
            "events": f"{events['plays'] + events['skips']:,}, {_number(figures['events_per_s'])} per s",
            "shed": f"{latest['shed']:,} requests, {_number(figures['shed_per_s'])} per s",
            "Redis": redis_line(latest["redis"]),
            "event log": log_line(latest["event_log"]),
        }
        return facts_table("Service", facts)


def redis_line(redis: Snapshot) -> str:
    """Describe the state of Redis in one line."""
    parts = ["up" if redis["reachable"] else "UNREACHABLE"]
    if redis["detail"]:
        parts.append(redis["detail"])
    if redis["memory_bytes"] is not None:
        limit = f" of {redis['memory_limit_bytes'] / 1e6:,.0f}" if redis["memory_limit_bytes"] else ""
        parts += [f"{redis['memory_bytes'] / 1e6:,.1f}{limit} MB"]
        parts += ["append-only file" if redis["append_only"] else "NO append-only file"]
        parts += [] if redis["last_write_ok"] else ["LAST WRITE TO DISK FAILED"]
    if redis["workers_away"]:
        noun = "worker" if redis["workers_away"] == 1 else "workers"
        parts.append(f"circuit open in {redis['workers_away']} {noun}")
    return ", ".join(parts)


def log_line(log: Snapshot) -> str:
    """Describe the event log in one line."""
    if not log["kept"]:
        return "off"
    waiting = "unknown" if log["waiting"] is None else f"{log['waiting']:,}"
    parts = [f"{waiting} events waiting"]
    if log["oldest_s"] is not None:
        parts.append(f"oldest {log['oldest_s']:.0f} s")
    parts.append(f"{log['plays_written']:,} plays written")
    if log["last_file"] is not None:
        parts.append(f"last file {log['last_file']['written_at'][:19]}Z")
    elif not log["written_here"]:
        parts.append("written by another service")
    parts += [f"{log['dropped']:,} PLAYS DROPPED"] if log["dropped"] else []
    parts += [f"{log['failures']:,} FAILED WRITES"] if log["failures"] else []
    return ", ".join(parts)


def experiment_line(experiment: Snapshot | None) -> str:
    """Describe the A/B test in one line."""
    if experiment is None:
        return "none"
    words = f"{experiment['release']} in {experiment['folder']}, {experiment['share']:.0%} of sessions"
    if experiment["state"] in ("ended", "void"):
        word = "ENDED" if experiment["state"] == "ended" else "VOID"
        words += f", {word} since {experiment['since'][:19]}Z: {experiment['reason']}"
    return words


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _alarming(value: float | None) -> Text:
    return Text(_number(value), style="bold red" if value else "")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
