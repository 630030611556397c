"""Packages of this repository as it is or under another number, and what they need to be installed offline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from nimsnats.version import __version__

_ROOT: Final = Path(__file__).parents[2]
_SHIPPED: Final = ("nimsnats", "forest", "deploy", "pyproject.toml", "README.md", "LICENSE", ".gitignore")


def build(directory: Path, *, version: str = __version__, umask: int = 0o022) -> list[Path]:
    """Wheel and source archive, built in `directory` from a copy of the sources."""
    for name in _SHIPPED:
        if (_ROOT / name).is_dir():
            shutil.copytree(_ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(_ROOT / name, directory / name)
    for name in ("pyproject.toml", "nimsnats/version.py"):
        file = directory / name
        file.write_text(file.read_text().replace(f'"{__version__}"', f'"{version}"'))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build"], cwd=directory, check=True, capture_output=True, umask=umask,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1767225600", "HOME": str(directory)}, timeout=60,
    )  # fmt: skip
    return sorted((directory / "dist").iterdir())


def build_wheel(directory: Path, version: str) -> Path:
    """The wheel alone."""
    directory.mkdir()
    (wheel,) = (path for path in build(directory, version=version) if path.suffix == ".whl")
    return wheel


def gather(wheel: Path, directory: Path) -> None:
    """Everything that it depends on, as wheels. Raises CalledProcessError where there is no package index."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--wheel-dir", directory]
    subprocess.run([*pip, wheel], check=True, capture_output=True, timeout=300)
