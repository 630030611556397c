"""What is shipped for Prometheus and Grafana: the rules, their own tests, and the dashboard, against a live node."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nats
import pytest

from forest.metrics import HELP
from nimsnats.monitor.stall import StallWatch
from nimsnats.monitor.view import Application
from nimsnats.registry import RegistryStatus
from nimsnats.server import Server
from tests.deploy.test_files import DEPLOY, run
from tests.monitor.sides import Side

RULES = DEPLOY / "prometheus" / "alerts.yml"
RULE_TESTS = DEPLOY / "prometheus" / "alerts.test.yml"
DASHBOARD = DEPLOY / "grafana" / "nimsnats.json"
_METRIC = re.compile(r"\b(?:nimsnats|forest|process)_\w+\b(?!\s*\()")
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")


def alerts() -> dict[str, str]:
    """The text of each rule by its name."""
    _, *rules = re.split(r"^ +- alert: ", RULES.read_text(), flags=re.MULTILINE)
    return {rule.split()[0]: rule for rule in rules}


def board() -> dict[str, Any]:
    """The dashboard."""
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def expressions() -> list[str]:
    """Every expression of the dashboard, with values for its variables."""
    found = [target["expr"] for panel in board()["panels"] for target in panel.get("targets", ())]
    return [
        expr.replace("$__rate_interval", "1m").replace("$job", "nimsnats").replace("$instance", ".*") for expr in found
    ]


@needs_promtool
def test_the_rules_fire_when_they_should_and_only_then() -> None:
    tested = run("promtool", "test", "rules", RULE_TESTS)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_promtool
def test_prometheus_takes_rules_configuration_and_the_dashboards_expressions(tmp_path: Path) -> None:
    quoted = "\n".join(
        f"      - {{record: 'a:b:c{number}', expr: {json.dumps(expr)}}}" for number, expr in enumerate(expressions())
    )
    (tmp_path / "board.yml").write_text(f"groups:\n  - name: board\n    rules:\n{quoted}\n")
    checked = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES, tmp_path / "board.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    configured = run("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert configured.returncode == 0, configured.stdout + configured.stderr


def test_every_rule_is_tested_and_tells_what_to_do() -> None:
    tested = set(re.findall(r'alertname="(\w+)"', RULE_TESTS.read_text()))
    assert tested == set(alerts())
    for name, rule in alerts().items():
        assert re.search(r"severity: (critical|warning|info)\b", rule), name
        assert re.search(r"^ +summary: \S", rule, re.MULTILINE), name
        description = rule.partition("description: >-")[2]
        assert len(description.split()) > 15, f"{name}: say what to do"


async def test_rules_and_dashboard_use_metrics_that_a_node_has() -> None:
    async with Server(monitor_port=-1, name="node-1") as server:
        assert server.monitor is not None and server.view is not None
        server.view.registry = lambda: RegistryStatus("http://registry:8500", connected=True)
        server.view.application = Application(lambda: [(name, {}, 0) for name in HELP], HELP)
        server.view.stalls = StallWatch(server.runtime)
        page = (await Side("ours", server.port, server.monitor.port).ask("/metrics")).text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    shown = set(kinds)
    for name, kind in kinds.items():
        if kind == "histogram":
            shown |= {name + suffix for suffix in ("_bucket", "_sum", "_count")}
    rules = "\n".join(re.sub(r"^ +(summary|description): .*?(?=^ +(?:- )?\w+:|\Z)", "", rule, flags=re.DOTALL | re.M)
                      for rule in alerts().values())  # fmt: skip
    assert "Prometheus has not reached" not in rules, "words are no expressions"
    used = set(_METRIC.findall("\n".join([*expressions(), rules])))
    assert len(used) > 60
    assert used - shown == set()


def test_the_dashboard_is_whole() -> None:
    found = board()
    assert found["uid"] and found["title"] and found["schemaVersion"] >= 36
    variables = {variable["name"]: variable for variable in found["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, f"{panel['title']} lies on another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["title"] and panel["description"] and panel["targets"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for name in re.findall(r"\$(\w+)", " ".join(target["expr"] for target in panel["targets"])):
            assert name in variables or name == "__rate_interval", f"{panel['title']}: no variable ${name}"


async def test_many_streams_do_not_make_a_large_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nimsnats.monitor.jetmetrics.MOST_LINES", 2)
    async with Server(monitor_port=-1) as server:
        assert server.monitor is not None
        side = Side("ours", server.port, server.monitor.port)
        client = await nats.connect(server.url)
        stream = client.jetstream()
        for name in ("A", "B"):
            await stream.add_stream(name=name, subjects=[name])
        await stream.publish("A", b"x")
        assert 'nimsnats_stream_messages{account="$G",stream="A"} 1.0' in (await side.ask("/metrics")).text
        await stream.add_stream(name="C", subjects=["C"])
        short, long = (await side.ask("/metrics")).text, (await side.ask("/metrics?streams=1")).text
        assert 'stream="' not in short and long.count("nimsnats_stream_messages{") == 3
        assert 'nimsnats_jetstream_unlisted{kind="stream"} 3.0' in short
        assert 'nimsnats_jetstream_unlisted{kind="stream"} 0.0' in long
        assert 'nimsnats_jetstream_messages{account="$G"} 1.0' in short
        await client.close()
