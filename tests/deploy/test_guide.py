"""The guide for operators: what it names exists, so that its commands can be run as written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nimsnats import cli
from nimsnats.backup import commands as backup_commands

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "deploy" / "DEPLOYMENT.md").read_text()
COMMANDS = {
    **{name: command for name, command in cli.node.commands.items() if name not in ("server", "forest")},
    "backup": backup_commands.backup,
    "restore": backup_commands.restore,
    "verify": backup_commands.verify,
    "recover": backup_commands.recover,
    "export": backup_commands.export,
}
"""Those whose options are known to click."""


def commands() -> Iterator[str]:
    """Every `nimsnats …` of the guide: prompts in examples, and spans of code in the text."""
    for line in re.findall(r"^ {4,}[$#] (.*)$", GUIDE, re.MULTILINE):
        for part in re.split(r"&&|;", re.sub(r"\s#.*", "", line)):
            if part.split()[:1] == ["nimsnats"]:
                yield part.strip()
    yield from re.findall(r"`(nimsnats [^`]+)`", GUIDE)


def option_names(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_every_command_and_flag_exists(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith("-")}
    assert given <= option_names(COMMANDS[name]), line


def test_the_guide_shows_each_command_that_operators_need() -> None:
    shown = {shlex.split(line)[1] for line in commands()}
    assert shown >= {"backup", "doctor", "export", "recover", "registry", "restore", "status", "verify"}


def test_every_variable_is_one_that_something_reads() -> None:
    named = set(re.findall(r"\b(?:NATS|REGISTRY|FOREST|NIMSFOREST)_[A-Z_]*[A-Z]\b", GUIDE))
    template = (ROOT / "deploy" / "nimsforest.env.template").read_text()
    links = {parameter.envvar for parameter in COMMANDS["backup"].params}
    settings = set(re.findall(r"^#?([A-Z_]+)=", template, re.MULTILINE))
    assert {"REGISTRY_URL", "NATS_CLUSTER_SECRET", "NATS_URL"} <= named
    assert named - settings - links == set()


def test_every_heading_and_link_is_there() -> None:
    headings = re.findall(r"^#{2,3} (.*)$", GUIDE, re.MULTILINE)
    specified = {
        "Morpheus integration overview", "Registry requirements", "Single node deployment",
        "Multi-node cluster deployment", "Scaling up", "Scaling down", "Troubleshooting",
    }  # fmt: skip
    assert specified <= set(headings)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", GUIDE)) <= anchors
    assert [path for path in re.findall(r"\]\((?!#)([^)]+)\)", GUIDE) if not (ROOT / "deploy" / path).exists()] == []


def test_every_page_of_the_http_port_is_served() -> None:
    section = GUIDE.partition("## Watching it")[2].partition("\n## ")[0]
    pages = set(re.findall(r"`(/[a-z/]+)`", section))
    assert {"/health", "/health/cluster", "/metrics", "/healthz"} <= pages
    served = "".join(path.read_text() for path in (ROOT / "nimsnats" / "monitor").rglob("*.py"))
    assert [page for page in sorted(pages) if f'"{page}"' not in served] == []
