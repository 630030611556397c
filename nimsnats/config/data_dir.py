"""Which directory a node keeps its data in, when nobody said or the default is out of reach.

Owns: the search for a writable directory. Creates nothing: that is `storage`'s business.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from nimsnats.runtime import StartError


def explicit_data_dir(path: Path) -> Path:
    """A directory that somebody asked for. Raises StartError when it cannot be written."""
    reason = unwritable(path)
    if reason:
        raise StartError(f"cannot use data directory {path}: {reason}")
    return path


def default_data_dir(path: Path, environ: Mapping[str, str], home: Path, notes: list[tuple[int, str]]) -> Path:
    """The system's data directory, or the user's own (XDG) when that cannot be written, which `notes` then say.

    Raises StartError when neither can be written.
    """
    reason = unwritable(path)
    if not reason:
        return path
    base = environ.get("XDG_DATA_HOME", "")
    own = (Path(base) if os.path.isabs(base) else home / ".local" / "share") / "nimsforest" / "jetstream"
    own_reason = unwritable(own)
    if own_reason:
        raise StartError(f"cannot use data directory {path}: {reason}; nor {own}: {own_reason}; use --data-dir")
    notes.append((logging.WARNING, f"Data directory {path} is not writable ({reason}), using {own}"))
    return own


def unwritable(path: Path) -> str:
    """Why no data can be written below `path`, which need not exist yet; empty when it can."""
    for directory in (path, *path.parents):
        try:
            mode_is_directory = directory.is_dir()
            exists = mode_is_directory or directory.exists()
        except OSError as error:
            return (error.strerror or str(error)).lower()
        if exists and not mode_is_directory:
            return f"{directory} is not a directory"
        if exists:
            return "" if os.access(directory, os.W_OK | os.X_OK) else "permission denied"
    return "no such directory"
