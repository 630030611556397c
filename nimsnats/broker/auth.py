"""Who may connect, and as whom.

Owns the `Authenticator` interface and its first implementation: nobody configured, a token, or users with passwords
(clear or bcrypt). It never talks to the connection; it gets what CONNECT said and names an account or refuses.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nimsnats.broker.options import BrokerOptions, User
    from nimsnats.broker.passwords import Passwords
    from nimsnats.protocol.connect import ConnectOptions

_BCRYPT = ("$2a$", "$2b$", "$2x$", "$2y$")


@dataclass(slots=True, frozen=True)
class Identity:
    """As whom a connection was let in: account name, and the user name that monitoring shows (`[REDACTED]`: token)."""

    account: str
    user: str = ""


class Authenticator(Protocol):
    """Decides about connections."""

    @property
    def required(self) -> bool:
        """Whether a connection must authenticate before it may do anything."""
        ...

    @property
    def default(self) -> Identity | None:
        """Who a connection without credentials is (no_auth_user, or everybody when nothing is required)."""
        ...

    def authenticate(self, connect: ConnectOptions, address: str) -> Identity | Awaitable[Identity | None] | None:
        """The identity that these credentials prove, or None. Slow checks (bcrypt) come back as an awaitable.
        `address` is where the client is, without its port."""
        ...


class ConfiguredAuthenticator:
    """Authentication from `BrokerOptions`: users, else a token, else none."""

    def __init__(self, options: BrokerOptions, passwords: Passwords) -> None:
        self._users = {user.name: user for user in options.users}
        self._token = options.token
        self._passwords = passwords
        self._global = "$G"
        self.required = bool(self._users or self._token)
        self.default: Identity | None = None
        if not self.required:
            self.default = Identity(self._global)
        elif options.no_auth_user in self._users:
            user = self._users[options.no_auth_user]
            self.default = Identity(user.account, user.name)
        elif (
            not options.no_auth_user and self._users and all(u.account == options.system_account for u in options.users)
        ):
            # users of the system account alone close no door that was open before (as in nats-server)
            self.default = Identity(self._global)

    def authenticate(self, connect: ConnectOptions, address: str) -> Identity | Awaitable[Identity | None] | None:
        """See `Authenticator.authenticate`."""
        if not self.required:
            return Identity(self._global)
        anonymous = not (connect.user or connect.password or connect.auth_token)
        if self.default is not None and anonymous:
            return self.default
        if self._users:
            return self._user(self._users.get(connect.user), connect.password, address)
        return self._compare(self._token, connect.auth_token, Identity(self._global, "[REDACTED]"), address)

    def _user(self, user: User | None, password: str, address: str) -> Identity | Awaitable[Identity | None] | None:
        if user is None:
            return None
        return self._compare(user.password, password, Identity(user.account, user.name), address)

    def _compare(
        self, secret: str, given: str, identity: Identity, address: str
    ) -> Identity | Awaitable[Identity | None] | None:
        if not secret.startswith(_BCRYPT):
            return identity if hmac.compare_digest(secret.encode(), given.encode()) else None
        return self._hashed(secret, given, identity, address)

    async def _hashed(self, secret: str, given: str, identity: Identity, address: str) -> Identity | None:
        """Compare with a bcrypt hash on another thread: it takes tens of milliseconds by design."""
        return identity if await self._passwords.fits(secret, given, address) else None
