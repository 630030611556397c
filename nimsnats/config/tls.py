"""The `tls` blocks: which files, whom to trust, how long a handshake may take.

Owns the keys and nats-server's error texts. The files are tried when the configuration is read, so that what is wrong
with them is an error with a line number.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from nimsnats import files
from nimsnats.broker.tls import TlsOptions
from nimsnats.config.fields import (
    Block,
    FieldError,
    Reader,
    Report,
    as_map,
    as_timeout,
    into,
    known,
    not_supported,
    read_block,
)
from nimsnats.config.flags import ServerFlags
from nimsnats.protocol.conf import Item
from nimsnats.runtime import StartError

_MOST_BYTES: Final = 16 << 20
"""Of a file with certificates or a key."""
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

_VARIABLES: Final = {
    "NATS_CLUSTER_TLS_CERT": "cert_file",
    "NATS_CLUSTER_TLS_KEY": "key_file",
    "NATS_CLUSTER_TLS_CA": "ca_file",
}


def tls_block(store: Callable[[TlsOptions], None], *, between_servers: bool = False) -> Reader:
    """Reader of a `tls` block. An empty one asks for nothing, as in nats-server."""

    def read(item: Item, _key: str, report: Report) -> None:
        tree = as_map(item)
        options = TlsOptions()
        wrong = len(report.errors())
        read_block(tree, _keys(options, between_servers=between_servers), report)
        if tree and len(report.errors()) == wrong:
            check_tls(options, between_servers=between_servers)
            store(options)

    return read


def check_tls(options: TlsOptions, *, between_servers: bool) -> None:
    """Try the files. Raises FieldError."""
    for name in ("cert_file", "key_file"):
        if not getattr(options, name):
            raise FieldError(f"missing '{name}' in TLS configuration")
    for file in filter(None, (options.cert_file, options.key_file, options.ca_file)):
        try:
            files.check(file, _MOST_BYTES)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EFBIG):  # of anything else OpenSSL has words of its own
                raise FieldError(f"cannot use {file}: {error.strerror}") from error
    try:
        options.listening(verify=options.verify or between_servers)
    except StartError as error:
        raise FieldError(str(error)) from error


def routes_tls(tls: TlsOptions | None, environ: Mapping[str, str]) -> TlsOptions | None:
    """The files of the cluster port as `NATS_CLUSTER_TLS_CERT`, `_KEY` and `_CA` name them, else as in the file.

    Raises FieldError.
    """
    given = {name: environ[variable] for variable, name in _VARIABLES.items() if environ.get(variable)}
    if not given:
        return tls
    options = replace(tls or TlsOptions(), **given)
    try:
        check_tls(options, between_servers=True)
    except FieldError as error:
        raise FieldError(f"{', '.join(_VARIABLES)}: {error}") from None
    return options


def clients_tls(tls: TlsOptions | None, flags: ServerFlags) -> TlsOptions | None:
    """The client port's settings with `--tls`, `--tlscert` and so on applied. Raises FieldError."""
    if not (flags.tls or flags.tls_verify or flags.tls_cert or flags.tls_key or flags.tls_ca):
        return tls
    given = tls or TlsOptions()
    options = replace(
        given,
        cert_file=flags.tls_cert or given.cert_file,
        key_file=flags.tls_key or given.key_file,
        ca_file=flags.tls_ca or given.ca_file,
        verify=flags.tls_verify or given.verify,
    )
    for what, file in (("certificate", options.cert_file), ("private key", options.key_file)):
        if not file:
            raise FieldError(f"TLS Server {what} must be present and valid")
    check_tls(options, between_servers=False)
    return options


def _keys(options: TlsOptions, *, between_servers: bool) -> Block:
    def timeout(item: Item, _key: str, _report: Report) -> None:
        options.timeout = as_timeout(item, "tls")

    def min_version(item: Item, _key: str, _report: Report) -> None:
        version = _VERSIONS.get(item.value) if isinstance(item.value, str) else None
        if version is None:
            raise FieldError(f'error parsing tls config: "{item.value}" is not "1.2" or "1.3"')
        options.min_version = version

    return {
        **known("cert_file", _file(into(options, "cert_file"))),
        **known("key_file", _file(into(options, "key_file"))),
        **known("ca_file", _file(into(options, "ca_file"))),
        **known("verify", _switch(into(options, "verify"))),
        **known("insecure", _switch(into(options, "insecure"))),
        **known("timeout", timeout),
        **known("min_version", min_version),
        **(
            not_supported("handshake_first first immediate", False)
            if between_servers
            else known("handshake_first first immediate", _switch(into(options, "handshake_first")))
        ),
        **not_supported("verify_and_map verify_cert_and_check_known_urls", False),
        **not_supported("cipher_suites curve_preferences pinned_certs connection_rate_limit certs ocsp_peer"),
        **not_supported("cert_store cert_match_by cert_match ca_certs_match cert_match_skip_invalid"),
    }


def _file(store: Callable[[object], None]) -> Reader:
    def read(item: Item, key: str, _report: Report) -> None:
        if not isinstance(item.value, str):
            raise FieldError(f"error parsing tls config, expected '{key}' to be filename")
        store(item.value)

    return read


def _switch(store: Callable[[object], None]) -> Reader:
    def read(item: Item, key: str, _report: Report) -> None:
        if not isinstance(item.value, bool):
            raise FieldError(f"error parsing tls config, expected '{key}' to be a boolean")
        store(item.value)

    return read
