"""`nimsnats status` and `nimsnats top`: a running node and its cluster, for people at a terminal."""

from nimsnats.status.commands import status, top
from nimsnats.status.health import NoAnswer

__all__ = ["NoAnswer", "status", "top"]
