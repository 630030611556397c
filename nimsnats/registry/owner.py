"""The key by which a node shows, over restarts, that a registration is its own.

Owns: one small file in the data directory. The registry keeps only a digest of the key, and changes or removes the
entry for nobody else until it expires. A node that has lost the file waits for that, as another node of its name would.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from random import Random
from typing import Final

from nimsnats import files

FILE: Final = "registry.key"
_KEY: Final = re.compile(rb"[0-9a-f]{64}")
_MOST_BYTES: Final = 128


def owner_key(data_dir: Path, random: Random) -> str:
    """The key in `data_dir`, made now if there is none. Raises OSError where it can neither be read nor written."""
    path = data_dir / FILE
    found = _read(path)
    if found:
        return found
    key = random.randbytes(32).hex()
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(f"{FILE}.new")
    new.unlink(missing_ok=True)
    descriptor = files.open_regular(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, follow=False)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.encode())
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    return key


def _read(path: Path) -> str:
    """The key in a file; empty if there is none, or something else is in its place."""
    try:
        content = files.read(path, _MOST_BYTES, follow=False).strip()
    except OSError:
        return ""  # missing, a link, a socket: it is put anew, or the write says what is wrong
    return content.decode() if _KEY.fullmatch(content) else ""
