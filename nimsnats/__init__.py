"""nimsnats: a NATS server with durable JetStream, in pure Python, for a process of its own or inside yours.

`Server` is the broker with JetStream; `Node` adds the registry, the cluster and the forest. Both are async context
managers. See README.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nimsnats.version import __version__

if TYPE_CHECKING:
    from nimsnats.node import Node
    from nimsnats.server import Server

__all__ = ["Node", "Server", "__version__"]


def __getattr__(name: str) -> Any:
    """Load `Server` and `Node` when they are first asked for: `import nimsnats` itself stays light."""
    if name == "Server":
        from nimsnats.server import Server

        return Server
    if name == "Node":
        from nimsnats.node import Node

        return Node
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
