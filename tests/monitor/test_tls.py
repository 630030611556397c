"""What monitoring tells of TLS: the same as the Go server with the same files and the same client."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import nats
import pytest

from nimsnats.protocol.x509 import BadCertificate, Certificate
from nimsnats.server import Server, embedded_settings
from tests.certificates import Authority, block, needs_openssl
from tests.conformance.oracle import Oracle
from tests.monitor.conftest import monitored
from tests.monitor.sides import Side, differences, shape

pytestmark = needs_openssl
_OWN = {"-feature_flags", "-git_commit", "-http_req_stats./"}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "authority")


async def seen(side: Side, context: ssl.SSLContext) -> tuple[Any, Any]:
    """`/varz`, and `/connz` with one client."""
    client = await nats.connect(side.url.replace("nats:", "tls:"), tls=context, name="app")
    await client.flush()
    found = await side.get("/varz"), (await side.get("/connz?auth=1"))["connections"][0]
    await client.close()
    return found


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_is_told_as_by_the_oracle(authority: Authority, tmp_path: Path, version: ssl.TLSVersion) -> None:
    options = authority.options("server", verify=True)
    context = ssl.create_default_context(cafile=authority.ca)
    context.load_cert_chain(*authority.issue("client"))
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    settings = embedded_settings("127.0.0.1", -1, None, jetstream=False, monitor_port=-1, name="")
    settings.broker.tls = options
    async with Server(settings) as server:
        assert server.monitor is not None
        ours = await seen(Side("ours", server.port, server.monitor.port), context)
    with Oracle(tmp_path).start(block(options), "-m", "-1") as oracle:
        theirs = await seen(monitored(oracle), context)
    assert set(differences(shape(theirs[0]), shape(ours[0]))) <= _OWN
    assert set(differences(shape(theirs[1]), shape(ours[1]))) == set()
    for key in ("tls_required", "tls_verify", "tls_timeout", "tls_cert_not_after"):
        assert ours[0][key] == theirs[0][key]
    assert ours[1]["tls_version"] == theirs[1]["tls_version"]
    assert ours[1]["tls_peer_certs"][0] == theirs[1]["tls_peer_certs"][0]
    if version is ssl.TLSVersion.TLSv1_2:
        assert ours[1]["tls_cipher_suite"] == theirs[1]["tls_cipher_suite"]


def test_what_is_cut_short_is_no_certificate(authority: Authority) -> None:
    pem = Path(authority.ca).read_text()
    der = ssl.PEM_cert_to_DER_cert(pem)
    whole = Certificate(der)
    assert whole.subject() == "CN=authority" and whole.not_after().tzinfo is not None
    for length in range(len(der) - 1):
        with pytest.raises(BadCertificate):
            Certificate(der[:length])
