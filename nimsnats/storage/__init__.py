"""Storage: one SQLite database per node, one fsync for everything that waited for it, checksums on
everything.

Owns the data directory. It knows groups by number and entries by index; what they mean is `raft`'s and the
state machines' business. Start with `open_database`; `interface.py` is what callers see.
"""

from nimsnats.storage.database import CommitReport, Database, open_database
from nimsnats.storage.errors import (
    Corrupt,
    Foreign,
    InUse,
    NewerVersion,
    StorageError,
    StorageFailed,
    StorageFull,
    Unwritable,
)
from nimsnats.storage.interface import CompactionPoint, Storage, StoredEntry, StoredGroup

__all__ = [
    "CommitReport",
    "CompactionPoint",
    "Corrupt",
    "Database",
    "Foreign",
    "InUse",
    "NewerVersion",
    "Storage",
    "StorageError",
    "StorageFailed",
    "StorageFull",
    "StoredEntry",
    "StoredGroup",
    "Unwritable",
    "open_database",
]
