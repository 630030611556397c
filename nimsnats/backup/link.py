"""The connection of the backup commands: credentials, the JetStream API, and errors in words.

Owns one nats-py client. What is asked and done with the answers is its users' business.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import nats
import nats.errors
from nats.aio.client import Client

_TIMEOUT: Final = 10.0
_LARGEST_CHUNK: Final = 512 * 1024


class Refused(Exception):
    """The server says no, or nobody answers; one line for the user."""


@dataclass(slots=True)
class Credentials:
    """Where to connect to, and as whom. Files by path."""

    url: str
    user: str = ""
    password: str = ""
    token: str = ""
    creds: str = ""
    nkey: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""

    def options(self) -> dict[str, Any]:
        """What `nats.connect` wants. Raises OSError, ssl.SSLError."""
        known = {"user": self.user, "password": self.password, "token": self.token}
        known |= {"user_credentials": self.creds, "nkeys_seed": self.nkey}
        options: dict[str, Any] = {key: value for key, value in known.items() if value}
        if self.tls_ca or self.tls_cert or self.url.startswith("tls://"):
            context = ssl.create_default_context(cafile=self.tls_ca or None)
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key or None)
            options["tls"] = context
        return options


class Link:
    """A connected client."""

    def __init__(self, client: Client) -> None:
        self.client = client

    @property
    def chunk(self) -> int:
        """Bytes of one upload message."""
        return min(_LARGEST_CHUNK, self.client.max_payload)

    async def ask(self, subject: str, body: Any = None, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """An answer of the API. Raises Refused, also for an error in it."""
        data = b"" if body is None else json.dumps(body).encode()
        return parsed(await self.request(f"$JS.API.{subject}", data, headers))

    async def request(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> bytes:
        """The bytes of any answer. Raises Refused."""
        try:
            return (await self.client.request(subject, data, timeout=_TIMEOUT, headers=headers)).data
        except nats.errors.NoRespondersError:
            raise Refused("nobody answers: is JetStream enabled for this account?") from None
        except (nats.errors.TimeoutError, TimeoutError):
            raise Refused("the server does not answer in time") from None
        except nats.errors.Error as error:
            raise Refused(f"the connection is lost: {error}") from error

    async def names(self) -> list[str]:
        """The names of all streams. Raises Refused."""
        found: list[str] = []
        while True:
            page = await self.ask("STREAM.NAMES", {"offset": len(found)})
            names: list[str] = page["streams"] or []
            found += names
            if not names or len(found) >= page["total"]:
                return found


def parsed(data: bytes) -> dict[str, Any]:
    """An answer of the API without error. Raises Refused."""
    try:
        answer: Any = json.loads(data)
    except ValueError:
        raise Refused("the server answers with something else than JSON") from None
    if "error" in answer:
        error = answer["error"]
        raise Refused(f"{error.get('description', 'error')} ({error.get('err_code', 0)})")
    return answer


@asynccontextmanager
async def connected(credentials: Credentials) -> AsyncGenerator[Link]:
    """A link that is closed at the end. Raises Refused when there is none to be had."""
    told: list[Exception] = []

    async def hear(error: Exception) -> None:
        """Once connected, errors are told by whoever waits for something."""
        told[:] = [error]

    try:
        client = await nats.connect(  # pyright: ignore[reportUnknownMemberType]
            credentials.url,
            name="nimsnats backup",
            connect_timeout=5,
            allow_reconnect=False,
            max_reconnect_attempts=1,  # of the first connection, too; and it does not say why it gives up
            reconnect_time_wait=0.2,
            error_cb=hear,
            **credentials.options(),
        )
    except (OSError, nats.errors.Error, ssl.SSLError, TimeoutError, ValueError) as error:
        if isinstance(error, nats.errors.NoServersError) and told:
            error = told[0]
        raise Refused(f"cannot connect to {credentials.url}: {error or type(error).__name__}") from None
    try:
        yield Link(client)
    finally:
        await client.close()
