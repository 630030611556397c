"""Who is in the cluster: the registry's interface, its clients, and the registry server.

`registry` is the interface and `node` the values; `morpheus` speaks HTTP, `local` and `memory` work in the process;
`member` is what all clients share (heartbeats, lease, status). On the server's side `catalog` is the state, `directory`
puts it on a clock and on disk (`store`), `api` is its HTTP, `server` runs it stand-alone. `address` finds the address
that a node advertises. Importing this package loads neither aiohttp, nor aiosqlite, nor pyroute2.
"""

from nimsnats.registry.errors import (
    InvalidNodeError,
    NameTakenError,
    NotRegisteredError,
    RegistryAnswerError,
    RegistryConfigError,
    RegistryError,
    RegistryFullError,
    RegistryListenError,
    RegistryRefusedError,
    RegistryStoreError,
    RegistryUnavailableError,
    UnknownNodeError,
)
from nimsnats.registry.lease import Lease
from nimsnats.registry.node import NodeInfo
from nimsnats.registry.registry import Listing, PeerEvent, Registry, RegistryStatus

__all__ = [
    "InvalidNodeError",
    "Lease",
    "Listing",
    "NameTakenError",
    "NodeInfo",
    "NotRegisteredError",
    "PeerEvent",
    "Registry",
    "RegistryAnswerError",
    "RegistryConfigError",
    "RegistryError",
    "RegistryFullError",
    "RegistryListenError",
    "RegistryRefusedError",
    "RegistryStatus",
    "RegistryStoreError",
    "RegistryUnavailableError",
    "UnknownNodeError",
]
