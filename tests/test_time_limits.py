"""Time limits of the service, its pages, the proxy and the deployments, compared with each other.

Each row of a comparison must end earlier than the next: who waits must wait longer than what it waits for.
"""

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
pytest.importorskip("pydantic_settings")

from service.api.stream import HEARTBEAT_INTERVAL_S, POLL_INTERVAL_S  # noqa: E402
from service.sessions.embedded_redis import STOP_WAIT_S  # noqa: E402
from service.settings import Settings  # noqa: E402

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
if not DOCKER.is_dir():
    pytest.skip("the deployment is not part of the wheel", allow_module_level=True)

PROXY = (DOCKER / "haproxy.cfg").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """A duration such as 10s or 500ms."""
    found = re.fullmatch(r"(\d+)(ms|s|m|h)", text)
    assert found, text
    return int(found[1]) * UNITS[found[2]]


def default(name: str) -> float:
    """The default of a setting, in its own unit."""
    return float(Settings.model_fields[name].default)


def of_proxy(name: str) -> float:
    """A `timeout` of the proxy. Each is stated once."""
    [value] = re.findall(rf"^ +timeout {name} (\S+)$", PROXY, flags=re.MULTILINE)
    return seconds(value)


def swap_limits() -> list[float]:
    """How long each backend of the proxy waits for the answer to a swap."""
    rule = r"^ +http-request set-timeout server (\S+) if \{ method PUT \} \{ path,url_dec -m beg /releases/current \}$"
    return [seconds(value) for value in re.findall(rule, PROXY, flags=re.MULTILINE)]


def pods() -> dict[str, dict[str, Any]]:
    """The pods of the Kustomize base."""
    documents = [one for path in (DOCKER / "kubernetes").glob("*.yaml") for one in yaml.safe_load_all(path.read_text())]
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in documents
        if "template" in one.get("spec", {})
    }


def test_an_idle_stream_is_not_idle_to_the_proxy() -> None:
    """A beat may be late by one look at Redis that hangs."""
    latest_beat = HEARTBEAT_INTERVAL_S + POLL_INTERVAL_S + default("redis_timeout_s")
    assert latest_beat < of_proxy("server")
    assert latest_beat < of_proxy("client")


def test_a_swap_is_answered_before_the_proxy_gives_up_and_the_page_waits_for_the_proxy() -> None:
    script = (ROOT / "service" / "web" / "ops-releases.js").read_text()
    [page_ms] = re.findall(r"^const SWAP_LIMIT_MS = ([\d_]+);", script, flags=re.MULTILINE)
    assert len(swap_limits()) == PROXY.count("\nbackend ")
    for limit in swap_limits():
        # The release is tried, opened in the worker and warmed up.
        assert 2 * default("release_validation_timeout_s") < limit < int(page_ms) / 1000


def test_an_answer_outlasts_neither_redis_nor_the_proxy() -> None:
    assert default("redis_wait_timeout_ms") / 1000 < default("redis_timeout_s") < of_proxy("server")
    assert default("latency_budget_ms") / 1000 < default("redis_timeout_s")


def test_the_proxy_is_stricter_with_slow_heads_than_the_service() -> None:
    """So it answers the client itself, and no slow client occupies a connection to a replica."""
    assert of_proxy("http-request") < default("read_timeout_s") <= of_proxy("client")


def test_a_health_check_waits_for_the_answer_about_a_redis_that_hangs() -> None:
    redis_s = default("redis_timeout_s")
    assert redis_s < of_proxy("check")
    for name, pod in pods().items():
        for container in pod["containers"]:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if container[probe]["httpGet"]["path"] == "/health/ready":
                    assert redis_s < container[probe]["timeoutSeconds"], (name, probe)
    for path in DOCKER.glob("service*.Dockerfile"):
        found = re.search(r"--timeout=(\S+) .*--start-period=(\S+) .*\n.*timeout=(\d+)\)", path.read_text())
        assert found
        assert redis_s < int(found[3]) < seconds(found[1]), path.name


def test_a_pod_is_not_restarted_before_it_had_the_time_to_start() -> None:
    """A release is opened and tried at the start."""
    for name, pod in pods().items():
        probe = pod["containers"][0]["startupProbe"]
        assert default("release_validation_timeout_s") < probe["periodSeconds"] * probe["failureThreshold"], name


def test_whoever_ends_the_service_waits_until_it_has_ended() -> None:
    """Open requests, then what still has to be written, or the embedded Redis."""
    needed = default("shutdown_grace_s") + STOP_WAIT_S
    for name in ("service", "log-writer"):
        assert needed < seconds(COMPOSE[name]["stop_grace_period"]), name
    for name, pod in pods().items():
        hook = (
            pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
        )
        assert needed + int(hook[1]) < pod["terminationGracePeriodSeconds"], name
    manual = (ROOT / "docs" / "operate" / "deploy.md").read_text()
    [documented] = re.findall(r"docker run [^`]*?--stop-timeout (\d+)", manual)
    assert needed < int(documented)


@pytest.mark.parametrize("name", [name for name, service in COMPOSE.items() if "healthcheck" in service])
def test_a_check_of_the_compose_file_ends_before_the_next_begins(name: str) -> None:
    check = COMPOSE[name]["healthcheck"]
    assert seconds(check["timeout"]) < seconds(check["interval"])
