"""The order of the examination, and the settings that the patient would run with."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from nimsnats import files
from nimsnats.config import VARIABLES, ConfigError, NodeFlags, Settings, for_node, load_node
from nimsnats.doctor import disk, env_file, machine, network, ports
from nimsnats.doctor.finding import Finding, ok, problem, warning
from nimsnats.runtime import Runtime, StartError

_FLAGS: Final = "NIMSFOREST_FLAGS"
_MOST_BYTES: Final = 1 << 20
"""Of an environment file."""
_REGISTRY_FLAGS: Final = "REGISTRY_FLAGS"
"""Of the registry's unit, which reads the same file."""
_WEBHOOK: Final = "FOREST_WEBHOOK_"
_OURS: Final = ("REGISTRY_", "NATS_", "FOREST_", "NIMSFOREST_")


@dataclass(slots=True)
class Patient:
    """What the node would be started with. `parse_flags` reads the words of NIMSFOREST_FLAGS, which an environment
    file may hold; it raises ValueError."""

    environ: Mapping[str, str]
    flags: NodeFlags = field(default_factory=NodeFlags)
    env_file: Path | None = None
    parse_flags: Callable[[list[str]], NodeFlags] = lambda _words: NodeFlags()


async def examine(patient: Patient, runtime: Runtime) -> list[Finding]:
    """Look at everything. Raises nothing that the machine could cause."""
    found: list[Finding] = [*machine.check_program()]
    environ, flags = dict(patient.environ), patient.flags
    if patient.env_file is not None:
        read = _read(patient.env_file)
        found += read.findings
        # a service has this file's variables, and none of the shell's that doctor is called from
        environ = {name: value for name, value in environ.items() if name == "HOME"} | read.variables
        words = read.variables.get(_FLAGS, "")
        if words:
            try:
                flags = _merged(flags, patient.parse_flags(shlex.split(words)))
            except ValueError as error:
                found.append(problem("settings", f"{_FLAGS}: {error}", f"Correct {_FLAGS}"))
    settings, complaints = _settings(flags, environ)
    found += complaints
    node = disk.running_node(settings.data_dir)
    now_ns = runtime.time_ns()
    found += machine.check_limits(node)
    found += machine.check_clock(now_ns)
    found += disk.check_directory(settings.data_dir, settings.node_name, node, now_ns)
    found += disk.check_disk(settings.data_dir, runtime.boot_time_ns)
    found += ports.check_ports(settings, node)
    found += machine.check_secrets(settings, environ)
    found += await network.check_address(settings)
    found += await network.check_registry(settings, runtime)
    return found


@dataclass(slots=True)
class _Read:
    findings: list[Finding]
    variables: dict[str, str] = field(default_factory=dict[str, str])


def _read(path: Path) -> _Read:
    try:
        text = files.read(path, _MOST_BYTES).decode()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "it is not text"
        return _Read([problem("settings", f"{path} cannot be read: {reason}", "Correct --env-file, or run it as root")])
    parsed = env_file.parse(text)
    advice = "Correct the line: systemd reads NAME=value, and no shell"
    findings = [problem("settings", f"{path}: {mistake}", advice) for mistake in parsed.mistakes]
    findings += _unread(path, parsed.variables)
    if mode & (stat.S_IRGRP | stat.S_IROTH) and any(
        _is_secret(name) for name, value in parsed.variables.items() if value
    ):
        findings.append(warning("settings", f"{path} holds secrets that others can read", f"chmod 600 {path}"))
    return _Read(findings or [ok("settings", f"{path} is well-formed")], parsed.variables)


def _unread(path: Path, names: Iterable[str]) -> Iterator[Finding]:
    """Variables that look like ours and that nothing reads: a node whose REGISTRY_URL is misspelt runs alone."""
    known = VARIABLES | {_FLAGS, _REGISTRY_FLAGS}
    for name in names:
        if name in known or name.startswith(_WEBHOOK) or not name.startswith(_OURS):
            continue
        (near, *_) = [*get_close_matches(name, known, 1), ""]
        advice = f"Is it {near}?" if near else "Remove it, or see nimsforest.env.template for the names"
        yield problem("settings", f"{path}: nothing reads {name}", advice)


def _is_secret(name: str) -> bool:
    return name in ("REGISTRY_TOKEN", "NATS_CLUSTER_SECRET") or name.startswith(_WEBHOOK)


def _settings(flags: NodeFlags, environ: Mapping[str, str]) -> tuple[Settings, list[Finding]]:
    """The settings, or the defaults with the reasons why there are none."""
    warned: list[str] = []
    try:
        settings = load_node(flags, environ, warn=warned.append)
    except ConfigError as error:
        reasons = str(error).splitlines()
        found = [problem("settings", reason, "Correct it; the defaults are looked at instead") for reason in reasons]
        return _defaults(), found
    except StartError as error:
        return _defaults(), [problem("settings", str(error), "Run doctor as the node's user, or as root")]
    findings = [warning("settings", line, "See the configuration file") for line in warned]
    findings += [warning("settings", text, "Intended?") for _, text in settings.notes]
    return settings, findings or [ok("settings", f"node {settings.node_name}, cluster {settings.cluster.name}")]


def _defaults() -> Settings:
    settings = for_node()
    settings.node_name = "?"
    return settings


def _merged(stronger: NodeFlags, weaker: NodeFlags) -> NodeFlags:
    """What is said on the command line counts more than what the environment file says."""
    merged = replace(weaker)
    for flag in fields(NodeFlags):
        value = getattr(stronger, flag.name)
        if value is not None and value is not False:
            setattr(merged, flag.name, value)
    return merged
