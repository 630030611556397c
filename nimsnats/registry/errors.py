"""What can go wrong with a registry, by whose fault it is and whether trying again makes sense."""

from __future__ import annotations


class RegistryError(Exception):
    """Base of everything below. The message is one line, fit for a log."""


class RegistryConfigError(RegistryError):
    """Our own settings are wrong (URL, certificate files): trying again is pointless."""


class RegistryUnavailableError(RegistryError):
    """No usable answer: down, unreachable, too slow, or a 5xx. Try again later."""


class RegistryTimeoutError(RegistryUnavailableError):
    """Reached, as far as one can tell, but no answer in time."""


class WatchUnsupportedError(RegistryError):
    """The registry does not speak this way of watching; the next one may do."""


class RegistryRefusedError(RegistryError):
    """The registry understood and said no (4xx, 501). `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class UnknownNodeError(RegistryRefusedError):
    """404: the registry has no such node, or has it no more; registering again is the answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 404)


class NameTakenError(RegistryRefusedError):
    """409: another instance is registered under this node's name, and is alive."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 409)


class RegistryAnswerError(RegistryError):
    """The registry answered with something that is not its API: HTML, wrong types, an endless body."""


class NotRegisteredError(RegistryError):
    """An operation that needs a registered node came before `register`."""


class InvalidNodeError(RegistryError):
    """A node or service entry breaks the rules of `registry.node`; the message names the key."""


class RegistryFullError(RegistryError):
    """A limit of the registry server is reached (services, or nodes in one service)."""


class RegistryStoreError(RegistryError):
    """The registry server's database cannot be used; the message says which file and why."""


class RegistryListenError(RegistryError):
    """The registry server cannot listen where it was told to."""
