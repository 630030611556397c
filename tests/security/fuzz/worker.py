"""One target under atheris: `python -m tests.security.fuzz.worker TARGET FOLDER [OPTION OF LIBFUZZER …]`.

A finding is written to FOLDER/findings (the input beside a text of what happened) and the run goes on: one finding a
place in the code. Only what ends the process (a hang, memory without end, a crash of C code) is libFuzzer's own to
report. Nothing of the product may be imported before atheris can see its branches.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import atheris

from tests.security.fuzz.target import Target

SECONDS = 2.0
"""Processor time that any input may take, under instrumentation; more with its size."""
SECONDS_A_BYTE = 0.0005
MEMORY = 96 << 20
"""Bytes that one input may add to the most that the process ever held."""


class Findings:
    """What was found, on disk at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: set[str] = set()
        folder.mkdir(exist_ok=True)
        self._seen.update(path.name.removesuffix(".txt") for path in folder.glob("*.txt"))

    def add(self, kind: str, where: str, data: bytes, text: str) -> None:
        """Keep the first input of a kind at a place."""
        name = f"{kind}-{hashlib.sha256(where.encode()).hexdigest()[:10]}"
        if name in self._seen:
            return
        self._seen.add(name)
        (self._folder / name).write_bytes(data)
        (self._folder / f"{name}.txt").write_text(f"{kind} at {where}\n{text}\n", errors="backslashreplace")


def watched(target: Target, findings: Findings) -> Callable[[bytes], None]:
    """The target with everything that it may not do written down."""

    def most() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def spent(data: bytes) -> float:
        started = time.process_time()
        target.run(data)
        return time.process_time() - started

    def run(data: bytes) -> None:
        before = most()
        try:
            seconds = spent(data)
            limit = SECONDS + SECONDS_A_BYTE * len(data)
            if seconds > limit and min(spent(data), spent(data)) > limit:
                findings.add("Slow", target.name, data, f"{seconds:.1f} s for {len(data)} bytes")
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}"
            findings.add(type(error).__name__, where, data, "".join(traceback.format_exception(error)))
        if most() - before > MEMORY:
            findings.add("Memory", target.name, data, f"{most() - before} bytes for {len(data)} bytes")

    return run


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    with atheris.instrument_imports(include=["nimsnats", "forest"]):
        from tests.security.fuzz.targets import TARGETS

    target = TARGETS[name]
    corpus, words = folder / "corpus", folder / "words"
    corpus.mkdir(exist_ok=True)
    for seed in target.seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    words.write_text("".join(['"' + "".join([rf"\x{byte:02x}" for byte in word]) + '"\n' for word in target.words]))
    options = [f"-max_len={target.longest}", f"-dict={words}", f"-artifact_prefix={folder}/", *sys.argv[3:]]
    atheris.Setup([sys.argv[0], str(corpus), *options], watched(target, Findings(folder / "findings")))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
