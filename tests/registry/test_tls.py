"""A registry over https: with its own authority, without trust, and with client certificates."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nimsnats.registry import NodeInfo, RegistryUnavailableError
from nimsnats.registry.morpheus import MorpheusRegistry
from nimsnats.registry.server import RegistryServer
from nimsnats.registry.transport import RegistryTls
from nimsnats.runtime import Runtime

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command for certificates")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem and key.pem, self-signed for 127.0.0.1; it serves as authority, server and client."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    where = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(
        [*command.split(), *where, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True
    )
    return folder


@pytest.fixture
async def server(certificates: Path, request: pytest.FixtureRequest) -> AsyncIterator[RegistryServer]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    if getattr(request, "param", "") == "mutual":
        context.load_verify_locations(certificates / "cert.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    made = RegistryServer(Runtime.real(), tls=context)
    await made.start("127.0.0.1:0")
    yield made
    await made.stop()


async def test_with_its_authority(server: RegistryServer, certificates: Path) -> None:
    tls = RegistryTls(ca_file=str(certificates / "cert.pem"))
    async with MorpheusRegistry(server.url, runtime=Runtime.real(), tls=tls) as one:
        assert server.url.startswith("https://")
        await one.register(NodeInfo("one", "127.0.0.1", 6222))
        assert (await one.list_nodes()).find("one") is not None


async def test_without_trust_it_is_refused(server: RegistryServer) -> None:
    async with MorpheusRegistry(server.url, runtime=Runtime.real()) as one:
        with pytest.raises(RegistryUnavailableError, match="certificate is not trusted"):
            await one.get_peers()


@pytest.mark.parametrize("server", ["mutual"], indirect=True)
async def test_client_certificates(server: RegistryServer, certificates: Path) -> None:
    cert, key = str(certificates / "cert.pem"), str(certificates / "key.pem")
    async with MorpheusRegistry(server.url, runtime=Runtime.real(), tls=RegistryTls(cert)) as stranger:
        with pytest.raises(RegistryUnavailableError):
            await stranger.get_peers()
    async with MorpheusRegistry(server.url, runtime=Runtime.real(), tls=RegistryTls(cert, cert, key)) as known:
        assert await known.get_peers() == []


async def test_plain_http_to_an_https_port(server: RegistryServer) -> None:
    async with MorpheusRegistry(server.url.replace("https", "http"), runtime=Runtime.real()) as one:
        with pytest.raises(RegistryUnavailableError):
            await one.get_peers()


async def test_a_registry_alone_speaks_https(certificates: Path) -> None:
    files = ["--tls-cert", str(certificates / "cert.pem"), "--tls-key", str(certificates / "key.pem")]
    command = [sys.executable, "-m", "nimsnats", "registry", "--listen", "0.0.0.0:0", *files]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        line = (await process.stderr.readline()).decode()
        told = re.search(r"Registry listening on https://0\.0\.0\.0:(\d+) ", line)
        assert told, line
        tls = RegistryTls(ca_file=str(certificates / "cert.pem"))
        async with MorpheusRegistry(f"https://127.0.0.1:{told[1]}", runtime=Runtime.real(), tls=tls) as one:
            assert await one.get_peers() == []
    finally:
        process.terminate()
        await process.wait()
