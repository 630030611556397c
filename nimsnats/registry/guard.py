"""Who may ask the registry server, and how its answers prove who gives them.

Owns: the judgement of a request before anything is done for it: web pages, content type, size and time of the body,
bearer token, proof of the cluster's secret. With neither token nor secret everybody is let in, as the plain API of the
specification has it, and counted by the address that he comes from.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from nimsnats.http_server import is_from_page
from nimsnats.proof import is_nonce
from nimsnats.registry.proof import (
    CHALLENGE,
    OWNER,
    PROOF,
    Challenges,
    Credential,
    Reply,
    Request,
    SharedSecret,
    parse_credential,
)
from nimsnats.runtime import Runtime
from nimsnats.source import source_of

MAX_REQUEST: Final = 16 << 10
"""Bytes of a request's body."""
READ_TIMEOUT: Final = 5.0
_READS: Final = ("GET", "HEAD")
_OWNER: Final = re.compile(r"[!-~]{0,128}")


class Refusal(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what he has sent. `source` is the address of a stranger, empty for one with secret or token;
    `owner` the key of the entries that are his; `credential` his proof, if that let him in."""

    source: str
    owner: str
    body: bytes
    credential: Credential | None = None


class Guard:
    """One server's. Without `token` and `secret` it lets everybody in; with both either one will do."""

    def __init__(self, runtime: Runtime, *, token: str = "", secret: str = "") -> None:
        self._runtime = runtime
        self._token = token.encode("utf-8", "surrogateescape")
        self._secret = SharedSecret(secret) if secret else None
        self._challenges = Challenges(runtime.random)

    @property
    def is_open(self) -> bool:
        """Whether strangers are let in."""
        return not self._token and self._secret is None

    async def admit(self, request: web.Request) -> Caller:
        """Judge a request and read its body. Raises `Refusal`."""
        _refuse_pages(request)
        if request.method not in _READS and request.body_exists:
            _check_content_type(request)
        owner = request.headers.get(OWNER, "")
        if not _OWNER.fullmatch(owner):
            raise Refusal(400, f"{OWNER} must be up to 128 printable ASCII characters")
        if self.is_open or self._has_token(request):
            source = source_of(request.remote or "") if self.is_open else ""
            return Caller(source, owner, await _read(request))
        if self._secret is None or PROOF not in request.headers:
            raise self._unknown("a valid bearer token is needed" if self._token else "")
        credential = parse_credential(request.headers[PROOF])
        if credential is None or not self._challenges.is_fresh(credential.challenge, self._runtime.monotonic()):
            raise self._unknown(f"the challenge in {PROOF} is not one of this registry's, or too old")
        body = await _read(request)
        if not self._secret.is_credential(credential, Request(request.method, request.raw_path, owner, body)):
            raise self._unknown(f"{PROOF} does not prove the cluster's secret for this request")
        if not self._challenges.spend(credential, self._runtime.monotonic()):
            raise self._unknown(f"the nonce in {PROOF} has been used before")
        return Caller("", owner, body, credential)

    def prove(self, caller: Caller | None, response: web.StreamResponse) -> None:
        """Have an answer to one who has proven the secret prove it in turn. Call it before the answer is sent."""
        if self._secret is None or caller is None or caller.credential is None:
            return
        body = response.body if isinstance(response, web.Response) else b""
        challenge = self._challenges.issue(self._runtime.monotonic())
        response.headers[CHALLENGE] = challenge
        index, ttl = response.headers.get("X-Registry-Index", ""), response.headers.get("X-Registry-TTL", "")
        reply = Reply(response.status, challenge, index, ttl, body if isinstance(body, bytes) else b"")
        response.headers[PROOF] = self._secret.answer(caller.credential, reply)

    def hello(self, nonce: str) -> dict[str, str]:
        """Prove to one who has proven nothing yet that this registry knows the secret. Raises `Refusal`."""
        if self._secret is None:
            raise Refusal(404, "this registry knows no cluster secret")
        if not is_nonce(nonce):
            raise Refusal(400, "'nonce' must be 64 hexadecimal digits, drawn at random")
        challenge = self._challenges.issue(self._runtime.monotonic())
        return {"challenge": challenge, "mac": self._secret.hello(nonce, challenge)}

    def _has_token(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), self._token)
        return bool(self._token) and scheme.lower() == "bearer" and right

    def _unknown(self, why: str) -> Refusal:
        why = why or f"proof of the cluster's secret is needed ({PROOF}); nodes with NATS_CLUSTER_SECRET give it"
        challenge = {"WWW-Authenticate": 'Bearer realm="nimsnats registry"'} if self._token else {}
        return Refusal(401, why, challenge)


def _refuse_pages(request: web.Request) -> None:
    """Web pages have no business here: not with writes, and not with reads unless the registry's own host serves the
    page, under a name that nobody can have bound to it (DNS rebinding)."""
    site = request.headers.get("Sec-Fetch-Site", "none")
    if request.method not in _READS:
        if is_from_page(request):
            raise Refusal(403, "web pages may not write to the registry (Origin or Sec-Fetch-Site is set)")
        return
    if "Origin" in request.headers or site not in ("none", "same-origin"):
        raise Refusal(403, "web pages may not read the registry (Origin or Sec-Fetch-Site is set)")
    if "Sec-Fetch-Site" in request.headers and not _is_own_name(request.host):
        raise Refusal(403, f"a browser reaches this registry by address, not as {request.host[:100]!r}")


def _is_own_name(host: str) -> bool:
    """Whether a Host header names an address, or this machine as it calls itself."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower() in ("localhost", socket.gethostname().lower())
    return True


def _check_content_type(request: web.Request) -> None:
    if request.content_type != "application/json":
        raise Refusal(415, f"the body must be sent as Content-Type: application/json, not {request.content_type[:100]}")


async def _read(request: web.Request) -> bytes:
    """The body, bounded in size and time."""
    data = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            async for chunk in request.content.iter_any():
                data += chunk
                if len(data) > MAX_REQUEST:
                    raise Refusal(413, f"the body is larger than {MAX_REQUEST} bytes")
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {READ_TIMEOUT:g}s") from None
    return bytes(data)
