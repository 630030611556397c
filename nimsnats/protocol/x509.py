"""The little that monitoring tells of X.509 certificates: until when they are valid, whose they are, which key.

Owns a walk through the outermost parts of a certificate's DER (RFC 5280, section 4.1; X.690). It checks nothing: what
is read here has been through a handshake, or is our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_ATTRIBUTES: Final = {
    b"\x55\x04\x03": "CN", b"\x55\x04\x05": "SERIALNUMBER", b"\x55\x04\x06": "C", b"\x55\x04\x07": "L",
    b"\x55\x04\x08": "ST", b"\x55\x04\x09": "STREET", b"\x55\x04\x0a": "O", b"\x55\x04\x0b": "OU",
    b"\x55\x04\x11": "POSTALCODE",
}  # fmt: skip
"""Object identifiers of X.520, with the names of RFC 2253 as the Go library writes them."""
_SPECIAL: Final = frozenset(',+"\\<>;')


class BadCertificate(ValueError):
    """These bytes are no certificate."""


class Certificate:
    """One certificate. Raises BadCertificate."""

    def __init__(self, der: bytes) -> None:
        try:
            fields = _items(next(_items(next(_items(der))[1]))[1])
            versioned = next(fields)[0] == _VERSION  # else that was the serial number
            for _ in range(2 + versioned):
                next(fields)  # serial number, signature algorithm, issuer
            self._validity = next(fields)[1]
            self._subject = next(fields)[1]
            self.key: bytes = next(fields)[2]
            """The public key's SubjectPublicKeyInfo, as it stands."""
        except (StopIteration, IndexError) as error:
            raise BadCertificate("not a certificate") from error

    def not_before(self) -> datetime:
        """When it begins. Raises BadCertificate."""
        return self._time(0)

    def not_after(self) -> datetime:
        """When it ends. Raises BadCertificate."""
        return self._time(1)

    def _time(self, which: int) -> datetime:
        try:
            kind, text, _ = tuple(_items(self._validity))[which]
            digits = text.decode("ascii").removesuffix("Z")
            if kind == _UTC_TIME:  # years of two digits: 1950 to 2049
                digits = ("19" if digits >= "50" else "20") + digits
            return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        except (ValueError, IndexError) as error:
            raise BadCertificate("no time of validity") from error

    def subject(self) -> str:
        """Whose it is, as RFC 2253 writes names: last part first. Raises BadCertificate."""
        try:
            return ",".join("+".join(_attribute(pair) for _, pair, _ in _items(part))
                            for _, part, _ in reversed(list(_items(self._subject))))  # fmt: skip
        except (ValueError, IndexError) as error:
            raise BadCertificate("no subject") from error


def _attribute(pair: bytes) -> str:
    (_, name, _), (kind, value, whole) = _items(pair)
    if name not in _ATTRIBUTES:
        numbers = [name[0] // 40, name[0] % 40]
        arc = 0
        for byte in name[1:]:
            arc = arc << 7 | byte & 0x7F
            if byte < 0x80:
                numbers.append(arc)
                arc = 0
        return f"{'.'.join(map(str, numbers))}=#{whole.hex()}"
    text = value.decode("utf-16-be" if kind == 0x1E else "utf-8", "replace")
    escaped = "".join(
        "\\" + letter if letter in _SPECIAL or (letter in " #" and at == 0) or (letter == " " and at == len(text) - 1)
        else letter for at, letter in enumerate(text)
    )  # fmt: skip
    return f"{_ATTRIBUTES[name]}={escaped}"


def _items(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(tag, content, tag with length and content) of the values that stand in a row. Raises IndexError."""
    at = 0
    while at < len(data):
        start, length = at, data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size])
            at += size
        if at + length > len(data):
            raise IndexError("shorter than it says")
        yield data[start], data[at : at + length], data[start : at + length]
        at += length
