"""HTTP to a registry that may be anything: bounded, timed, and turned into typed errors.

Owns: the aiohttp session, TLS, and the rules of what counts as an answer; whose it is, `trust` says. It knows nothing
of nodes.
No redirect is followed (a token must not travel), no proxy variable is read, nothing compressed is unpacked.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Final, cast
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from nimsnats.protocol.json import loads
from nimsnats.registry.errors import (
    NameTakenError,
    RegistryAnswerError,
    RegistryConfigError,
    RegistryRefusedError,
    RegistryTimeoutError,
    RegistryUnavailableError,
    UnknownNodeError,
)
from nimsnats.registry.proof import OWNER, PROOF_PATH, Credential
from nimsnats.registry.trust import Trust

MAX_BODY: Final = 2 << 20
"""Bytes of an answer that are read; the largest listing of our own server fits."""


@dataclass(frozen=True, slots=True)
class RegistryTls:
    """How to trust an https registry: its authority (else the system's), and who we are if it asks."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def context(self) -> ssl.SSLContext:
        """Load the files. Raises `RegistryConfigError` naming the one at fault."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise RegistryConfigError(f"cannot use the registry's CA file {self.ca_file}: {_reason(error)}") from error
        if self.cert_file:
            try:
                context.load_cert_chain(self.cert_file, self.key_file or None)
            except (OSError, ssl.SSLError) as error:
                files = f"{self.cert_file} and {self.key_file}" if self.key_file else self.cert_file
                raise RegistryConfigError(f"cannot use the registry certificate {files}: {_reason(error)}") from error
        elif self.key_file:
            raise RegistryConfigError(f"the registry key {self.key_file} needs a certificate beside it")
        return context


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer, read completely."""

    headers: Mapping[str, str]
    body: bytes

    def json(self) -> object:
        """The body as JSON. Raises `RegistryAnswerError`."""
        return parse_json(self.body, self.headers.get("Content-Type", ""))


def parse_json(body: bytes | str, content_type: str = "") -> object:
    """JSON that may be hostile (nesting, digits, encodings). Raises `RegistryAnswerError`."""
    try:
        return loads(body if isinstance(body, str) else body.decode())
    except ValueError as error:
        what = content_type.partition(";")[0].strip()[:40] or "something"
        raise RegistryAnswerError(f"answered with {what} that is not JSON") from error


class HttpTransport:
    """Requests below one base URL. `timeout` in seconds bounds each request as a whole.

    `secret` is the cluster's, see `trust`; `owner` the key of what this node registers.
    """

    def __init__(
        self,
        url: str,
        random: Random,
        *,
        token: str = "",
        secret: str = "",
        owner: str = "",
        tls: RegistryTls | None = None,
        timeout: float = 5.0,
    ) -> None:
        self.url = check_url(url)
        if token and (not token.isascii() or not token.isprintable() or " " in token):
            raise RegistryConfigError("the registry token has characters that do not fit into an HTTP header")
        self.trust = Trust(self.url, random, token=token, secret=secret)
        self._owner = owner
        self._timeout = timeout
        self._ssl: ssl.SSLContext | bool = tls.context() if tls and self.url.startswith("https:") else True
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """One request. Raises the `RegistryError` that says whose fault a missing 2xx is."""
        total = timeout or self._timeout
        data = b"" if body is None else json.dumps(body).encode()
        answer = await self._attempt(method, path, data, params, total, last=False)
        return answer or cast("Answer", await self._attempt(method, path, data, params, total, last=True))

    @asynccontextmanager
    async def stream(
        self, path: str, params: Mapping[str, str], headers: Mapping[str, str], quiet: float
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """An answer without end; an error if `quiet` seconds pass without a byte.

        Of a stream only the opening can be proven: what comes on it is a hint where there is a secret.
        """
        self.trust.greet_again()
        await self._greet()
        async with self._open("GET", path, b"", params, headers, None, quiet) as (response, credential):
            if not 200 <= response.status < 300:
                data = await _read(response)
                if credential is not None and not self._is_genuine(credential, response, data):
                    raise self.trust.refuse(response.status)
                raise _refusal(response, data)
            if credential is not None and not self._is_genuine(credential, response, b""):
                raise self.trust.refuse(response.status)
            yield response

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _greet(self) -> None:
        """Ask for the registry's proof, if one is needed. Raises `RegistryError` if it is not to be spoken to."""
        if not self.trust.must_greet:
            return
        nonce = self.trust.nonce()
        async with self._bare("GET", PROOF_PATH, b"", {"nonce": nonce}, {}, self._timeout, None) as response:
            data = await _read(response)
        status = response.status
        if (status >= 500 and status != 501) or status == 429:
            raise RegistryUnavailableError(f"answered {status}")  # down, which proves nothing either way
        try:
            answer = parse_json(data) if 200 <= status < 300 else None
        except RegistryAnswerError:
            answer = None
        self.trust.greeted(nonce, answer)

    async def _attempt(
        self, method: str, path: str, body: bytes, params: Mapping[str, str] | None, total: float, *, last: bool
    ) -> Answer | None:
        """One request; None if it is to be repeated after another greeting: the challenge was too old."""
        await self._greet()
        async with self._open(method, path, body, params, {}, total, None) as (response, credential):
            data = await _read(response)
        if credential is not None and not self._is_genuine(credential, response, data):
            if response.status >= 500 or response.status == 429:
                raise _refusal(response, data)  # somebody on the way says that it is down: that needs no proof
            if response.status == 401 and not last:
                self.trust.greet_again()
                return None
            raise self.trust.refuse(response.status)
        if not 200 <= response.status < 300:
            raise _refusal(response, data)
        return Answer(response.headers, data)

    def _is_genuine(self, credential: Credential, response: aiohttp.ClientResponse, body: bytes) -> bool:
        return self.trust.is_genuine(credential, response.status, response.headers, body)

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        body: bytes,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        total: float | None,
        quiet: float | None,
    ) -> AsyncGenerator[tuple[aiohttp.ClientResponse, Credential | None]]:
        """A request that shows who sends it, and the beginning of its answer, not judged yet."""
        target = URL(path, encoded=True).update_query(params or {}).raw_path_qs
        owner = self._owner if method != "GET" else ""
        shown, credential = self.trust.sign(method, target, owner, body)
        more = {**headers, **shown, **({OWNER: owner} if owner else {})}
        async with self._bare(method, target, body, None, more, total, quiet) as response:
            yield response, credential

    @asynccontextmanager
    async def _bare(
        self,
        method: str,
        path: str,
        body: bytes,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        total: float | None,
        quiet: float | None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        if self._session is None:
            fixed = {"Accept": "application/json", "Accept-Encoding": "identity"}
            self._session = aiohttp.ClientSession(
                headers=fixed, auto_decompress=False, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=self._timeout, sock_read=quiet)
        kind = {"Content-Type": "application/json"} if body else {}
        try:
            async with self._session.request(
                method,
                URL(self.url + path, encoded=True),
                data=body or None,
                params=params,
                headers={**headers, **kind},
                timeout=timeout,
                ssl=self._ssl,
                allow_redirects=False,
            ) as response:
                yield response
        except TimeoutError as error:
            raise RegistryTimeoutError(f"no answer within {total or quiet or self._timeout:g}s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise RegistryUnavailableError(_reason(error)) from error


def check_url(url: str) -> str:
    """An http or https URL, possibly with a path, without a trailing slash. Raises `RegistryConfigError`."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid, parts = False, urlsplit("")
    if not valid or any(character.isspace() for character in url):
        raise RegistryConfigError(f"registry URL {url!r} must look like http://host:8500 or https://host:8500")
    if parts.username or parts.password:
        raise RegistryConfigError("the registry URL must not hold credentials; use a registry token")
    if parts.query or parts.fragment:
        raise RegistryConfigError(f"registry URL {url!r} must not have a query or a fragment")
    return url.rstrip("/")


def segment(name: str) -> str:
    """A name as one path segment."""
    return quote(name, safe="")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, but never more than `MAX_BODY`."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            response.close()
            raise RegistryAnswerError(f"answered with more than {MAX_BODY >> 10} KiB")
    return bytes(body)


def _refusal(response: aiohttp.ClientResponse, body: bytes) -> Exception:
    """The error for an answer that is not 2xx."""
    status = response.status
    text = f"{status} {response.reason or ''}".strip()[:80]
    try:
        detail = parse_json(body)
        if isinstance(detail, dict) and isinstance(said := detail.get("error"), str):  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            text = f"{text}: {said[:200]}" if said.isprintable() else text
    except RegistryAnswerError:
        pass  # an error page in another format: the status says enough
    if 300 <= status < 400:
        return RegistryAnswerError(f"answered {text}, pointing to {response.headers.get('Location', 'nowhere')[:200]}")
    if (status >= 500 and status != 501) or status == 429:
        return RegistryUnavailableError(f"answered {text}")
    if status == 404:
        return UnknownNodeError(f"answered {text}")
    if status == 409:
        return NameTakenError(f"answered {text}")
    if status < 400:
        return RegistryAnswerError(f"answered {text}")
    return RegistryRefusedError(f"answered {text}", status)


def _reason(error: BaseException) -> str:
    """The short text of a network error: aiohttp wraps the system's, whose words people know."""
    system = getattr(error, "os_error", error)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted: {error.certificate_error}"
    if isinstance(system, OSError) and system.strerror:
        return system.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
