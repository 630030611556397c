"""Certificates for tests: an authority and what it vouches for, made by the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from nimsnats.broker.tls import TlsOptions

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
_UNTIL = """\
[ca]
default_ca = authority
[authority]
database = index
unique_subject = no
serial = numbers
rand_serial = yes
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
policy = names
[names]
commonName = supplied
"""
_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"


@dataclass(frozen=True)
class Authority:
    """One authority in a folder of its own; `issue` makes certificates that it vouches for."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        folder.mkdir(parents=True)
        _openssl(folder, f"req -x509 {_KEY} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem")
        return cls(folder)

    @property
    def ca(self) -> str:
        return str(self.folder / "ca.pem")

    def issue(self, name: str, names: str = "IP:127.0.0.1,DNS:localhost") -> tuple[str, str]:
        """Certificate and key for `names`; issuing a name again replaces its files."""
        _openssl(self.folder, f"req {_KEY} -subj /CN={name} -keyout {name}.key -out {name}.req")
        (self.folder / "names").write_text(f"subjectAltName={names}\n")
        signed = f"x509 -req -in {name}.req -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names"
        _openssl(self.folder, f"{signed} -out {name}.pem")
        return str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key")

    def issue_until(self, name: str, ends: datetime) -> tuple[str, str]:
        """Certificate and key of a client, valid until `ends` (UTC, whole seconds)."""
        (self.folder / "index").touch()
        (self.folder / "ca.conf").write_text(_UNTIL)
        _openssl(self.folder, f"req {_KEY} -subj /CN={name} -keyout {name}.key -out {name}.req")
        until = f"-startdate 20200101000000Z -enddate {ends:%Y%m%d%H%M%S}Z"
        _openssl(self.folder, f"ca -batch -notext -config ca.conf {until} -in {name}.req -out {name}.pem")
        return str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key")

    def options(self, name: str, names: str = "IP:127.0.0.1,DNS:localhost", **more: Any) -> TlsOptions:
        """The settings of a server with a certificate of its own, who trusts this authority."""
        cert, key = self.issue(name, names)
        return TlsOptions(cert, key, **{"ca_file": self.ca, **more})


def block(options: TlsOptions) -> str:
    """These settings as a block of a configuration file."""
    files = f"cert_file: '{options.cert_file}', key_file: '{options.key_file}', ca_file: '{options.ca_file}'"
    return f"tls {{ {files}, verify: {str(options.verify).lower()} }}"


def _openssl(folder: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)
