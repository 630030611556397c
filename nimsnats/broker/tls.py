"""TLS of a listener and of what is dialled from beside it: the settings, and the contexts that they make.

Owns the files and what they are good for. The handshake itself is `tls_transport`'s. Servers shake hands before the
first word (as on nats-server's cluster port), clients after INFO unless `handshake_first` is set.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from nimsnats.protocol.x509 import BadCertificate, Certificate
from nimsnats.runtime import StartError

TIMEOUT: Final = 2.0
"""Seconds that a handshake may take, nats-server's default."""
_SESSIONS: Final = 32 * 1024
"""Sessions that are noted: more than OpenSSL's cache holds, which are 20 * 1024."""
_HELLO: Final = 5 + 4 + 2 + 32 + 1
"""Bytes before the session identifier: of the record's head, the message's, the version, the random bytes, the
identifier's length."""
_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(slots=True)
class TlsOptions:
    """The `tls` block of a listener.

    `ca_file` says whom we trust (empty: the system's authorities). `verify` asks clients for a certificate; between
    servers both sides always need one. `insecure` trusts whoever answers when we dial. `timeout` in seconds.
    """

    cert_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    verify: bool = False
    insecure: bool = False
    timeout: float = TIMEOUT
    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    handshake_first: bool = False

    def listening(self, *, verify: bool) -> ssl.SSLContext:
        """The context of accepted connections. Raises StartError naming the file at fault.

        Where clients must show certificates they get no session tickets.
        """
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        if verify:
            context.verify_mode = ssl.CERT_REQUIRED
            context.num_tickets = 0  # of TLS 1.3
            context.options |= ssl.OP_NO_TICKET  # of TLS 1.2
        return context

    def accepting(self, *, verify: bool) -> Accepting:
        """What the handshakes of accepted connections need. Raises StartError naming the file at fault."""
        return Accepting(self.listening(verify=verify), self.listening(verify=True) if verify else None)

    def dialling(self) -> ssl.SSLContext:
        """The context of connections that we dial; the peer's certificate must name the host that was dialled.

        Raises StartError naming the file at fault.
        """
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def not_after(self) -> datetime | None:
        """When our certificate ends; None where its file cannot be read (any more) or makes no sense."""
        try:
            certificate = self.certificate()
            return Certificate(certificate).not_after() if certificate else None
        except ValueError:
            return None

    def certificate(self) -> bytes:
        """Our certificate as it is in its file now, DER; nothing where that cannot be read or makes no sense."""
        try:
            with open(self.cert_file, encoding="ascii", errors="replace") as file:
                pem = _PEM.search(file.read())
            return ssl.PEM_cert_to_DER_cert(pem[0]) if pem else b""
        except (OSError, ValueError):
            return b""

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = self.min_version
        context.options |= ssl.OP_NO_RENEGOTIATION
        try:
            context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            text = f"error parsing X509 certificate/key pair: {self.cert_file} and {self.key_file}: {reason(error)}"
            raise StartError(text) from error
        try:
            if self.ca_file:
                context.load_verify_locations(self.ca_file)
            else:
                context.load_default_certs()
        except (OSError, ssl.SSLError) as error:
            raise StartError(f"failed to parse root ca certificate: {self.ca_file}: {reason(error)}") from error
        return context


class Accepting:
    """The contexts of accepted connections. A new one knows no session of another one, so that what a reload has
    changed is asked of every client.

    Where clients must show a certificate no session is resumed, because OpenSSL would not look at the certificate
    again: it may have expired, or its issuer. Tickets can be turned off, but not the session identifiers of TLS 1.2.
    So there are two contexts, and who presents an identifier that one has issued is served by the other, which does
    not know it and shakes hands in full.
    """

    def __init__(self, first: ssl.SSLContext, other: ssl.SSLContext | None) -> None:
        self._first = first
        self._other = other
        self._issued: dict[bytes, None] = {}
        """Identifiers of the first context's sessions, oldest first."""

    @property
    def resuming(self) -> bool:
        """Whether sessions may be resumed; else `context` wants to know which one a client presents."""
        return self._other is None

    def context(self, session: bytes = b"") -> ssl.SSLContext:
        """The one that knows no session of that identifier."""
        return self._other if self._other is not None and session in self._issued else self._first

    def done(self, tls: ssl.SSLObject) -> str:
        """A handshake is done: note its session. The objection to a session that was resumed all the same, as can be
        when a ClientHello comes in so small records that nobody has seen its identifier; else nothing."""
        if self._other is None:
            return ""
        if tls.session_reused:
            return "no session can be resumed"
        session = tls.session
        if tls.context is self._first and tls.version() == "TLSv1.2" and session is not None:
            self._issued[session.id] = None
            if len(self._issued) > _SESSIONS:
                del self._issued[next(iter(self._issued))]
        return ""


def presented_session(hello: bytes) -> bytes | None:
    """Which session the beginning of a ClientHello presents (RFC 5246, sections 6.2.1 and 7.4.1.2); b"" when none is
    there to be seen, None when more has to come."""
    if hello[:1] not in (b"", b"\x16"):
        return b""  # no handshake record
    if len(hello) < _HELLO:
        return None if len(hello) < 5 or int.from_bytes(hello[3:5]) + 5 >= _HELLO else b""
    end = _HELLO + hello[_HELLO - 1]
    if int.from_bytes(hello[3:5]) + 5 < end:
        return b""
    return hello[_HELLO:end] if len(hello) >= end else None


@dataclass(slots=True, frozen=True)
class Secured:
    """What a handshake ended with: version and cipher suite by their names in Go, the peer's certificate or nothing."""

    version: str
    cipher: str
    certificate: bytes

    @classmethod
    def of(cls, tls: ssl.SSLObject) -> Secured:
        """What the SSL object tells when its handshake is done."""
        cipher = tls.cipher()
        return cls(
            (tls.version() or "").removeprefix("TLSv"),
            _go_name(cipher[0]) if cipher else "",
            tls.getpeercert(binary_form=True) or b"",
        )

    def objection(self, now_ns: int) -> str:
        """Why the peer's certificate is not good at this time, in nanoseconds since the epoch; empty when it is."""
        if not self.certificate:
            return "the peer has no certificate"
        try:
            certificate = Certificate(self.certificate)
            begins, ends = certificate.not_before().timestamp(), certificate.not_after().timestamp()
        except BadCertificate as error:
            return f"the peer's certificate cannot be read: {error}"
        now = now_ns / 1e9
        return "certificate is not yet valid" if now < begins else "certificate has expired" if now > ends else ""


def _go_name(cipher: str) -> str:
    """OpenSSL's ECDHE-RSA-AES128-GCM-SHA256 is TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 elsewhere."""
    if cipher.startswith("TLS_"):
        return cipher
    name = re.sub(r"AES(\d)", r"AES_\1", cipher).replace("-", "_")
    name = re.sub(r"^((?:EC)?DHE_[A-Z]+)_", r"TLS_\1_WITH_", name)
    return f"{name}_SHA256" if name.endswith("POLY1305") else name


@dataclass(slots=True, frozen=True)
class TlsContexts:
    """What connections between servers need: both ends of a handshake, and how long it may take."""

    listening: Accepting
    dialling: ssl.SSLContext
    timeout: float
    certificate: bytes = b""
    """The one that we show, DER."""

    @classmethod
    def between_servers(cls, options: TlsOptions) -> TlsContexts:
        """Both sides show a certificate, whatever `verify` says, as in nats-server. Raises StartError."""
        return cls(options.accepting(verify=True), options.dialling(), options.timeout, options.certificate())


def reason(error: OSError | ssl.SSLError) -> str:
    """Why a handshake failed or a file is no use, in a few plain words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    if isinstance(error, ConnectionAbortedError):  # what the loop calls a handshake that takes too long
        return "TLS handshake timeout"
    return error.strerror or str(error) or "the connection was closed"
