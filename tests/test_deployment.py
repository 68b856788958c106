"""What docker/ says agrees with the service: metrics, settings, routes, runbooks, one writer of the log."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
pytest.importorskip("prometheus_client")

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
if not DOCKER.is_dir():
    pytest.skip("the deployment is not part of the wheel", allow_module_level=True)

RULES = [
    rule
    for group in yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = json.loads((DOCKER / "grafana/segue.json").read_text())["panels"]
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
EXPRESSIONS = [rule["expr"] for rule in RULES] + [target["expr"] for panel in PANELS for target in panel["targets"]]


def manifests() -> Iterator[dict[str, Any]]:
    for path in sorted((DOCKER / "kubernetes").glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


def test_no_series_of_a_panel_is_without_its_labels() -> None:
    """`or vector(0)` adds a series without labels to one that is grouped: a nameless line of zeros."""
    grouped = [target["expr"] for panel in PANELS for target in panel["targets"] if "legendFormat" in target]
    assert grouped
    assert [expression for expression in grouped if " by " in expression and "vector(0)" in expression] == []


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = manifest["spec"]["template"]["spec"]["containers"][0]
    return container


WORKLOADS = {
    manifest["metadata"]["name"]: manifest for manifest in manifests() if "template" in manifest.get("spec", {})
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_that_is_asked_for_exists(expression: str) -> None:
    from service.telemetry import Telemetry

    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
    metrics = Telemetry().registry.collect()
    known = {metric.name + ending for metric in metrics for ending in endings[metric.type]}
    asked = set(re.findall(r"\bsegue_\w+", expression))
    assert asked <= known
    assert asked or "up{" in expression


def test_every_metric_is_on_the_dashboard() -> None:
    from service.telemetry import Telemetry

    shown = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    assert [metric.name for metric in Telemetry().registry.collect() if metric.name not in shown] == []


def test_every_route_that_is_asked_for_exists() -> None:
    paths = set(yaml.safe_load((ROOT / "openapi.yaml").read_text())["paths"])
    for expression in EXPRESSIONS:
        for pattern in re.findall(r'route[=!]~?"([^"]+)"', expression):
            for route in pattern.split("|"):
                assert route == "none" or any(re.fullmatch(re.escape(route).replace(r"\.\*", ".*"), p) for p in paths)


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_every_alert_has_a_runbook_and_is_shown_to_fire(rule: dict[str, Any]) -> None:
    document, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / document).read_text(), flags=re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
    assert f'alertname="{rule["alert"]}"' in (DOCKER / "prometheus/alerts.test.yml").read_text()


def test_every_setting_that_is_given_exists() -> None:
    pytest.importorskip("pydantic_settings")
    from service.settings import Settings

    # SEGUE_API_KEY is what clients send; secrets are the operator's.
    files = [path for path in DOCKER.rglob("*") if path.is_file() and "secrets" not in path.parts]
    for path in files:
        for name in re.findall(r"\bSEGUE_([A-Z_]+)", path.read_text()):
            assert name.lower() in {*Settings.model_fields, "key", "key_file"}, f"{path.name}: SEGUE_{name}"


def test_exactly_one_service_of_the_compose_file_writes_the_event_log() -> None:
    replicas = {"true": 0, "false": 0}
    for service in COMPOSE["services"].values():
        if service.get("image") == "segue-service":
            writes = service["environment"]["SEGUE_EVENT_LOG_WRITER"]
            replicas[writes] += service.get("deploy", {}).get("replicas", 1)
    assert replicas == {"true": 1, "false": 2}


def test_exactly_one_pod_of_the_kustomize_base_writes_the_event_log() -> None:
    writes = {
        name: {item["name"]: item.get("value") for item in container_of(manifest)["env"]}["SEGUE_EVENT_LOG_WRITER"]
        for name, manifest in WORKLOADS.items()
    }
    assert writes == {"segue": "false", "segue-log-writer": "true"}
    assert WORKLOADS["segue-log-writer"]["kind"] == "StatefulSet"
    assert WORKLOADS["segue-log-writer"]["spec"]["replicas"] == 1


@pytest.mark.parametrize("name", WORKLOADS)
def test_pods_run_without_rights(name: str) -> None:
    pod = WORKLOADS[name]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container_of(WORKLOADS[name])["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_containers_run_without_rights(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert 0 < service["pids_limit"] <= 1024
    assert bytes_of(service["mem_limit"]) > 0
    assert all(re.fullmatch(r"/\S+:size=\d+[mg]", mount) for mount in service["tmpfs"])
    # The images of Segue bring their own check; the load test comes to an end by itself.
    assert "healthcheck" in service or "build" in service or service["restart"] == "no"
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]) or "build" in service, "an image without a version"


def bytes_of(text: str) -> int:
    """A size such as 512m or 1gb."""
    found = re.fullmatch(r"(\d+)([mg])b?", text)
    assert found, text
    return int(found[1]) * {"m": 2**20, "g": 2**30}[found[2]]


def test_redis_may_use_less_memory_than_its_container() -> None:
    """Or the kernel would end it instead of refusing writes. A rewrite of its file takes up to as much again."""
    [maxmemory] = re.findall(r"^maxmemory (\S+)$", (DOCKER / "redis.conf").read_text(), flags=re.MULTILINE)
    assert 2 * bytes_of(maxmemory) < bytes_of(COMPOSE["services"]["redis"]["mem_limit"])


def test_no_container_gets_a_password_by_its_environment_or_command() -> None:
    """Both are shown to whoever may ask the engine, and commands to whoever may list processes."""
    for name, service in COMPOSE["services"].items():
        words = [str(word) for word in service.get("command", [])]
        environment = {key: str(value) for key, value in service.get("environment", {}).items()}
        for key, value in environment.items():
            if re.search(r"PASSWORD|SECRET|TOKEN|KEY(?!S$)", key):
                assert key.endswith("_FILE"), f"{name}: {key}"
                assert value.removeprefix("/run/secrets/") in service["secrets"], f"{name}: {key}"
        told = " ".join([*words, *environment.values()])
        assert not re.search(r"\$\{\w*(PASSWORD|KEY|SECRET|TOKEN)\b", told), name
        assert not re.search(r"://[^/@\s]*:[^/@\s]+@|--requirepass|--pass\b", told), name
    assert set(COMPOSE["secrets"]) == {
        one for service in COMPOSE["services"].values() for one in service.get("secrets", [])
    }


def test_pods_get_the_password_of_redis_as_a_file() -> None:
    for name, manifest in WORKLOADS.items():
        container = container_of(manifest)
        environment = {item["name"]: item.get("value") for item in container["env"]}
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert environment["SEGUE_REDIS_PASSWORD_FILE"] == mounts["redis"]["mountPath"] + "/password", name
        assert mounts["redis"]["readOnly"]


def test_only_those_who_need_each_other_share_a_network() -> None:
    services, networks = COMPOSE["services"], COMPOSE["networks"]
    members = {network: {name for name, one in services.items() if network in one["networks"]} for network in networks}
    assert members == {
        "public": {"proxy"},
        "front": {"proxy", "service", "locust"},
        "store": {"service", "log-writer", "redis"},
        "scrape": {"service", "log-writer", "prometheus"},
        "dashboards": {"prometheus", "grafana"},
    }
    # What publishes no port has no way out.
    published = {name for name, one in services.items() if "ports" in one}
    for network, told in networks.items():
        assert told.get("internal", False) == (not members[network] <= published), network


def test_pods_are_reached_by_few_and_have_a_bound_on_their_disk() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in manifests() if one["kind"] == "NetworkPolicy"}
    for name, manifest in WORKLOADS.items():
        assert policies[name]["podSelector"]["matchLabels"] == manifest["spec"]["selector"]["matchLabels"]
        assert policies[name]["policyTypes"] == ["Ingress", "Egress"]
        for volume in manifest["spec"]["template"]["spec"]["volumes"]:
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], name
    for name, policy in policies.items():
        assert all(rule["from"] for rule in policy["ingress"]), f"{name} lets everybody in"
    assert policies["segue-store"]["policyTypes"] == ["Ingress"]
    [base] = [one for one in manifests() if one["kind"] == "Kustomization"]
    listed = {path.name for path in (DOCKER / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(base["resources"]) == listed


@pytest.mark.parametrize("path", sorted(DOCKER.glob("*.Dockerfile")), ids=lambda path: path.stem)
def test_images_are_pinned_and_run_as_nobody_in_particular(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"^ARG PYTHON=python:3\.11\.\d+-slim-bookworm$", text, flags=re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE)) == {"${PYTHON}"}
    assert re.findall(r"^USER (.+)$", text, flags=re.MULTILINE) == ["10001:10001"]


def test_the_kustomize_base_takes_the_image_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    [base] = [manifest for manifest in manifests() if manifest["kind"] == "Kustomization"]
    assert base["images"] == [{"name": "segue-service", "newTag": version}]


def test_every_variable_of_the_compose_file_is_documented() -> None:
    named = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text()))
    manual = (ROOT / "docs" / "operate" / "deploy.md").read_text()
    listed = manual.partition("## Docker Compose")[2].partition("## Kubernetes")[0]
    rows = " ".join(re.findall(r"^\| (`.*?) \|", listed, flags=re.MULTILINE))
    assert named == set(re.findall(r"`(\w+)`", rows))
    bases = set(
        re.findall(r"python:3\S+?bookworm", "".join(path.read_text() for path in DOCKER.glob("*.*") if path.is_file()))
    )
    assert len(bases) == 1, "the compose file and the Dockerfiles name different bases"
