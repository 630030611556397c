"""Passwords given on the command line are overwritten in the process list, as nats-server does.

Owns: this process's own argument memory (Linux: `/proc/self/stat` says where it is, `/proc/self/mem` is it). Where that
does not exist, nothing happens.
"""

from __future__ import annotations

from pathlib import Path

_ARG_START, _ARG_END = 45, 46  # proc(5), fields 48 and 49, counted behind the command's name


def hide(*secrets: str | None) -> None:
    """Overwrite the arguments that are, or end with `=` and, one of `secrets`; other processes see `x` instead."""
    wanted = [secret.encode(errors="surrogateescape") for secret in secrets if secret]
    if not wanted:
        return
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start).split(b"\0")
            memory.seek(start)
            memory.write(b"\0".join(_masked(argument, wanted) for argument in arguments))
    except (OSError, ValueError, IndexError):
        return  # a courtesy of the system that it need not extend: the arguments stay as they are


def _masked(argument: bytes, wanted: list[bytes]) -> bytes:
    for secret in wanted:
        head, equals, value = argument.partition(b"=")
        if argument == secret:
            return b"x" * len(secret)
        if equals and value == secret and head.startswith(b"-"):
            return head + equals + b"x" * len(secret)
    return argument
