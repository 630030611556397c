"""Histories as text: commands and what they led to, reviewed as diffs.

A file in `transcripts/` is a list of commands, each followed by its recorded output, indented. To record
anew, run with NIMSNATS_RECORD=1, and commit only a change that you can explain.

    group a b c [voters N] [small]   members with empty logs; all vote unless only the first N do; small: one
    entry a message tick NAME [TIMES]           time passes for one member; its messages go on the wire, its
    writes are started stabilize                   deliver and write until nothing is left to do
    deliver COUNT               deliver so many messages, finishing all disk writes after each
    settle NAME                 finish one member's disk writes, deliver nothing
    propose NAME TEXT           TEXT as an entry
    change NAME voter|learner|without OTHER
    transfer NAME TO | crash NAME | compact NAME
    cut A B | heal              stop messages from A to B; let all pass again
    drop                        lose everything on the wire
    state                       one line a member
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nimsnats.raft.core import Settings
from nimsnats.raft.machine import NotLeader
from tests.raft.network import Network

_TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


class Player:
    """Runs the commands of one transcript."""

    def __init__(self) -> None:
        self.network = Network([])
        self.lines: list[str] = []

    def run(self, command: str) -> list[str]:
        verb, *words = command.split()
        self.lines = []
        getattr(self, f"do_{verb}")(*words)
        return self.lines

    def note(self, line: str) -> None:
        self.lines.append(line)

    def do_group(self, *words: str) -> None:
        names = [word for word in words if word != "small"]
        settings = Settings(10, 3, max_message_bytes=1 if "small" in words else 1 << 20)
        voters = 0
        if "voters" in names:
            at = names.index("voters")
            voters = int(names[at + 1])
            names = names[:at]
        self.network = Network(names, 7, settings, voters)
        self.network.trace = self.note

    def do_tick(self, name: str, times: str = "1") -> None:
        member = self.network.members[name]
        for _ in range(int(times)):
            member.core.tick()
            self.network.pump(member)

    def do_stabilize(self) -> None:
        self.network.stabilize()

    def do_deliver(self, count: str) -> None:
        for _ in range(int(count)):
            self.network.deliver(self.network.wire.pop(0))
            for name in self.network.members:
                self.do_settle(name)

    def do_settle(self, name: str) -> None:
        member = self.network.members[name]
        while member.writes:
            self.network.finish_write(member)

    def do_propose(self, name: str, text: str) -> None:
        try:
            self.network.members[name].core.propose(5, text.encode())
        except NotLeader as error:
            self.lines.append(str(error))
        self.network.pump(self.network.members[name])

    def do_change(self, name: str, how: str, other: str) -> None:
        core = self.network.members[name].core
        now = core.membership
        after = {"voter": now.with_voter, "learner": now.with_learner, "without": now.without}[how](other)
        try:
            core.change_membership(after)
        except (NotLeader, ValueError) as error:
            self.lines.append(str(error))
        self.network.pump(self.network.members[name])

    def do_transfer(self, name: str, to: str) -> None:
        leading = self.network.members[name].core.leading
        self.lines.append("accepted" if leading is not None and leading.transfer(to) else "refused")
        self.network.pump(self.network.members[name])

    def do_crash(self, name: str) -> None:
        self.network.members[name].crash()

    def do_compact(self, name: str) -> None:
        self.network.members[name].compact()

    def do_cut(self, one: str, other: str) -> None:
        self.network.cut.add((one, other))

    def do_heal(self) -> None:
        self.network.cut.clear()

    def do_drop(self) -> None:
        self.network.wire.clear()

    def do_state(self) -> None:
        self.lines.extend(str(member.core) for member in self.network.members.values())


@pytest.mark.parametrize("path", _TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    player = Player()
    written: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("    "):
            continue
        written.append(line)
        if line and not line.startswith("#"):
            written.extend(f"    {output}" for output in player.run(line))
    text = "\n".join(written) + "\n"
    if os.environ.get("NIMSNATS_RECORD"):
        path.write_text(text)
    assert text == path.read_text()
