"""All targets by name."""

from __future__ import annotations

from tests.security.fuzz import documents, stored, wire

TARGETS = {target.name: target for target in (*wire.TARGETS, *documents.TARGETS, *stored.TARGETS)}
