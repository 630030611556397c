"""Findings as text for people or JSON for programs, and as an exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence

from nimsnats.doctor.finding import Finding, Level


def exit_code(findings: Sequence[Finding]) -> int:
    """1 when there is a problem; warnings are not a failure."""
    return int(any(finding.level is Level.PROBLEM for finding in findings))


def as_text(findings: Sequence[Finding]) -> str:
    """A line for each finding, with the advice below it, and a summary."""
    width = max((len(finding.subject) for finding in findings), default=0)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.level:<8} {finding.subject:<{width}}  {finding.text}")
        if finding.advice:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.advice}")
    problems, warnings = (
        sum(finding.level is level for finding in findings) for level in (Level.PROBLEM, Level.WARNING)
    )
    return "\n".join([*lines, "", f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}"])


def as_json(findings: Sequence[Finding]) -> str:
    """The findings as a JSON object: `ok`, and `findings` with their fields."""
    body = {
        "ok": not exit_code(findings),
        "findings": [
            {
                "subject": finding.subject,
                "level": finding.level.value,
                "text": finding.text,
                **({"advice": finding.advice} if finding.advice else {}),
            }
            for finding in findings
        ],
    }
    return json.dumps(body, indent=2, ensure_ascii=False)


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"
