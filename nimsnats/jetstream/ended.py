"""Memory streams that no process remembers any more.

Owns the decision that such a stream has ended: when every member of it has been started anew since, and says so. As
long as one member may still hold it, it stays in the catalogue and waits for that member; it is never begun again empty
under its old name. A member that has forgotten is repaired by the others (Raft's business).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.body import fields
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.mail import Mail, Unreachable
from nimsnats.jetstream.meta import Key, StreamRecord
from nimsnats.raft.home import MEMORY_MARK

if TYPE_CHECKING:
    from nimsnats.jetstream.engine import JetStream

_PATIENCE: Final = 0.5


class Ended:
    """See the module. `mail` is None on a server that never has peers."""

    def __init__(self, engine: JetStream, mail: Mail | None) -> None:
        self._engine = engine
        self._mail = mail
        self._alone: set[Key] = set()
        """Streams that were here only, in the last process."""
        if mail is not None:
            mail.listen("ended", self._on_question)
            mail.listen("strike", self._on_strike)

    def found(self, record: StreamRecord) -> bool:
        """Whether a stream that has no other member was here in an earlier process: then it is not opened."""
        engine = self._engine
        if not self._only_here(record) or not self.remembered(record):
            return False
        if record.key not in self._alone:
            self._alone.add(record.key)
            engine.log.warning("Memory stream '%s > %s' ended with the last process", record.account, record.name)
        return True

    def remembered(self, record: StreamRecord) -> bool:
        """Whether a memory stream was opened on this node before, in this process or an earlier one."""
        return MEMORY_MARK + record.group in self._engine.host.storage.group_names()

    async def begun(self, record: StreamRecord) -> None:
        """A memory stream was opened here: have the next process know, so that it does not begin it again."""
        group = self._engine.host.group(record.group)
        if self._mail is not None and group is not None:
            self._engine.host.enlist(group)
            await self._engine.host.synced()

    def _only_here(self, record: StreamRecord) -> bool:
        alone = record.members in ([], [self._engine.host.member])
        return alone and record.config.get("storage") == "memory"

    async def tidy(self) -> None:
        """Have the catalogue strike out what has ended. Raises Unreachable and ApiError; it is asked again."""
        engine = self._engine
        for key in list(self._alone):
            record = engine.meta.streams.get(key)
            if record is None or not self._only_here(record):
                self._alone.discard(key)
            else:
                await self._strike(record)
                await engine.host.remove_group(record.group)
        for account in list(engine.accounts.values()):
            for served in list(account.streams.values()):
                if self._forgotten(served.record) and await self._forgotten_elsewhere(served.record):
                    await self._strike(served.record)

    def _forgotten(self, record: StreamRecord) -> bool:
        """Whether this member has lost a memory stream with its last process, and nobody leads it who has it."""
        if record.config.get("storage") != "memory":
            return False
        if record.key in self._alone:
            return True
        group = self._engine.host.group(record.group)
        return group is not None and group.impaired and not group.leader

    async def _forgotten_elsewhere(self, record: StreamRecord) -> bool:
        """Whether every other member says so, too."""
        assert self._mail is not None
        for member in record.members:
            if member == self._engine.host.member:
                continue
            try:
                if not await self._mail.ask(member, "ended", [record.account, record.name, record.group], _PATIENCE):
                    return False
            except (Unreachable, ApiError):
                return False
        return True

    def _on_question(self, sender: str, body: Any) -> bool:
        record = self._named(body)
        return record is not None and self._forgotten(record)

    def _named(self, body: Any) -> StreamRecord | None:
        account, name, group = fields(body, str, str, str)
        record = self._engine.meta.streams.get((account, name))
        return record if record is not None and record.group == group else None

    async def _strike(self, record: StreamRecord) -> None:
        """Strike a stream out of the catalogue, or ask its leader to."""
        group = self._engine.meta.group
        body = [record.account, record.name, record.group]
        if group.leading:
            await self._on_strike(self._engine.host.member, body)
        elif group.leader and self._mail is not None:
            await self._mail.ask(group.leader, "strike", body, _PATIENCE)

    async def _on_strike(self, sender: str, body: Any) -> bool:
        record = self._named(body)
        if not self._engine.meta.group.leading:
            raise errors.CLUSTER_NOT_LEADER()
        if record is not None and record.config.get("storage") == "memory":
            self._engine.log.warning(
                "Memory stream '%s > %s' has ended: no process remembers it", record.account, record.name
            )
            await self._engine.meta.remove(record.key)
        return True
