"""Scraping, alerts and the dashboard, against the metrics that the code defines."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import promql_parser as promql
import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.util.metrics import Histogram, Metric

from pipeline.run.metrics import Meters

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
PANELS = DASHBOARD["panels"]
EXPRESSIONS = {
    f"{panel['title']} {target['refId']}": target["expr"].replace("$run", "a")
    for panel in PANELS
    for target in panel["targets"]
} | {rule["alert"]: rule["expr"] for rule in ALERTS}
RAYS_OWN_LABELS = {"le"}


def list_meters(value: object) -> list[Metric]:
    if isinstance(value, Metric):
        return [value]
    items = value.values() if isinstance(value, dict) else []
    return [meter for item in items for meter in list_meters(item)]


def list_series() -> dict[str, set[str]]:
    """Return labels of each series that Prometheus sees, by its name."""
    series: dict[str, set[str]] = {}
    for meter in list_meters(vars(Meters("run"))):
        labels = {*meter.info["tag_keys"], *RAYS_OWN_LABELS}
        endings = ("_bucket", "_count", "_sum") if isinstance(meter, Histogram) else ("",)
        series |= {f"ray_{meter.info['name']}{ending}": labels for ending in endings}
    return series


SERIES = list_series()


def find_selectors(expression: Any) -> list[promql.VectorSelector]:
    found = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql.VectorSelector):
            found.append(node)
        return True

    promql.walk(expression, visit)
    return found


def find_faults(text: str) -> list[str]:
    """Return what is wrong with an expression: names and labels that no metric has, or its grammar."""
    try:
        parsed = promql.parse(text)
    except ValueError as error:
        return [str(error)]
    names = {
        str(selector.name): [m.name for m in selector.matchers.matchers] for selector in find_selectors(parsed)
    }
    unknown = [name for name in names if name not in SERIES]
    if unknown:
        return unknown
    known = set().union(*(SERIES[name] for name in names))
    used = {label for labels in names.values() for label in labels}
    grouped = {label.strip() for part in re.findall(r"\b(?:by|on) \(([^)]*)\)", text) for label in part.split(",")}
    return sorted((used | grouped) - known)


def test_the_code_defines_metrics() -> None:
    assert "ray_musicfm_tracks_total" in SERIES
    assert "ray_musicfm_task_seconds_bucket" in SERIES
    assert len(SERIES) > 12


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_parses_and_asks_for_what_there_is(name: str) -> None:
    assert find_faults(EXPRESSIONS[name]) == []
    assert find_selectors(promql.parse(EXPRESSIONS[name]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ray_musicfm_tracks_total", "ray_musicfm_tracks"),
        ("outcome)", "outcomes)"),
        ("{run=", "{runs="),
        ("sum by", "sum bye"),
        ("[2m]", "[2 minutes]"),
    ],
)
def test_a_mistake_in_an_expression_is_found(old: str, new: str) -> None:
    text = EXPRESSIONS["Tracks by outcome A"]
    assert old in text
    assert find_faults(text.replace(old, new))


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {selector.name for text in EXPRESSIONS.values() for selector in find_selectors(promql.parse(text))}
    assert {name for name in SERIES if not name.endswith(("_count", "_sum"))} <= shown


def test_panels_have_names_explanations_and_a_place_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert all(panel["title"] and panel["description"] for panel in PANELS)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in PANELS)
        for x, y in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len(cells) == len(set(cells))
    assert all(0 <= x < 24 for x, _ in cells)
    assert len(cells) == 24 * (1 + max(y for _, y in cells))  # no holes


def test_every_panel_follows_the_variables() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS)))
    assert used == variables == {"run", "datasource"}
    assert all('run=~"$run"' in target["expr"] for panel in PANELS for target in panel["targets"])
    run = next(variable for variable in DASHBOARD["templating"]["list"] if variable["name"] == "run")
    assert re.findall(r"label_values\((\w+), run\)", run["query"]["query"])[0] in SERIES


# The parts of Prometheus's configuration that are used here, after its documentation of 3.5.
PROMETHEUS = {
    "type": "object",
    "required": ["scrape_configs"],
    "additionalProperties": False,
    "properties": {
        "global": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"scrape_interval": {"pattern": r"^\d+(ms|s|m)$"}},
        },
        "rule_files": {"type": "array", "items": {"type": "string"}},
        "scrape_configs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["job_name"],
                "additionalProperties": False,
                "properties": {
                    "job_name": {"type": "string"},
                    "static_configs": {
                        "items": {
                            "required": ["targets"],
                            "additionalProperties": False,
                            "properties": {"targets": {"items": {"pattern": r"^[\w.-]+:\d+$"}}},
                        }
                    },
                    "file_sd_configs": {
                        "items": {
                            "required": ["files"],
                            "additionalProperties": False,
                            "properties": {"files": {"items": {"pattern": r"\.(json|ya?ml)$"}}},
                        }
                    },
                },
            },
        },
    },
}


@pytest.mark.parametrize("path", ["monitoring/prometheus.yaml", "compose/prometheus.yaml"])
def test_the_scrape_settings_are_prometheus_own(path: str) -> None:
    settings = yaml.safe_load((ROOT / "infra" / path).read_text())
    jsonschema.validate(settings, PROMETHEUS)
    settings["scrape_configs"][0]["targets"] = ["ray:8080"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(settings, PROMETHEUS)


def test_the_nodes_are_looked_for_where_ray_lists_them() -> None:
    settings = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    (files,) = settings["scrape_configs"][0]["file_sd_configs"]
    assert files["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


def test_the_port_is_the_one_that_ray_exports_on() -> None:
    compose = yaml.safe_load((ROOT / "infra" / "compose" / "compose.yaml").read_text())
    scraped = yaml.safe_load((ROOT / "infra" / "compose" / "prometheus.yaml").read_text())["scrape_configs"][0]
    port = scraped["static_configs"][0]["targets"][0].split(":")[1]
    assert f"--metrics-export-port={port}" in compose["services"]["ray"]["command"]
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    name = monitor["spec"]["podMetricsEndpoints"][0]["port"]
    for path in ("rayjob.yaml", "raycluster.yaml"):
        text = (ROOT / "infra" / "kuberay" / path).read_text()
        assert text.count(f"{{name: {name}, containerPort: 8080}}") == 3  # the head and both groups


def test_an_alert_says_what_happened_to_which_run() -> None:
    for rule in ALERTS:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert "$labels.run" in rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    services = yaml.safe_load((ROOT / "infra" / "compose" / "compose.yaml").read_text())["services"]
    source = yaml.safe_load((FOLDER / "grafana-datasource.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services
    provider = yaml.safe_load((FOLDER / "grafana-provisioning.yaml").read_text())["providers"][0]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert any(Path(path).parent == Path(provider["options"]["path"]) for path in mounted)
