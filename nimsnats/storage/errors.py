"""Everything that can go wrong between this node and its disk, each with one line an operator can act on.

Owns: the exception types. Which of them a caller meets: opening raises `InUse`, `Foreign`, `Unwritable`,
`NewerVersion` or `Corrupt`; a commit ends in `StorageFull` (refused, try again when there is space) or
`StorageFailed` (over: nothing is acknowledged any more); a read raises `Corrupt`.
"""

from __future__ import annotations

from nimsnats.runtime import StartError


class StorageError(Exception):
    """Base of all of them. The text names the path and says what to do."""


class InUse(StorageError, StartError):
    """Another live process holds the data directory; the text names its pid."""


class Foreign(StorageError, StartError):
    """The directory or the database belongs to other software."""


class Unwritable(StorageError, StartError):
    """The directory cannot be created or written by this user."""


class NewerVersion(StorageError, StartError):
    """The directory was written by a later format of this software."""


class Corrupt(StorageError, StartError):
    """Stored bytes do not match their checksum, or the files contradict each other beyond repair."""


class StorageFull(StorageError):
    """No space left: the batch was rolled back and nothing of it is stored. Trying again later is fine."""


class StorageFailed(StorageError):
    """A write or fsync failed, or the storage is closed. What is on disk is unknown until the next start."""
