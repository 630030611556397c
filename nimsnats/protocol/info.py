"""The INFO line: nats-server's fields, in nats-server's order, with its blank before the line end.

Owns the text only; what the values are is the broker's business.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field


@dataclass(slots=True)
class ServerInfo:
    """What a server tells its clients about itself; see `encode` for the rest, which differs by connection."""

    server_id: str
    server_name: str
    version: str
    host: str
    port: int
    max_payload: int
    api_level: int
    runtime: str
    headers: bool = True
    auth_required: bool = False
    jetstream: bool = False
    cluster: str = ""
    domain: str = ""
    connect_urls: list[str] = field(default_factory=list[str])
    lame_duck: bool = False
    tls_required: bool = False
    tls_verify: bool = False

    def encode(
        self,
        client_id: int,
        client_ip: str,
        *,
        auth_required: bool | None = None,
        account: str = "",
        system: bool = False,
        tls: bool = True,
    ) -> bytes:
        """The INFO line for one client. `account` is given in the INFO that answers the first PING after CONNECT.

        `tls` is False for connections that never use it, whatever the listener asks for.
        """
        auth_required = self.auth_required if auth_required is None else auth_required
        fields: dict[str, object] = {
            "server_id": self.server_id,
            "server_name": self.server_name,
            "version": self.version,
            "proto": 1,
            "go": self.runtime,
            "host": self.host,
            "port": self.port,
            "headers": self.headers,
        }
        if auth_required:
            fields["auth_required"] = True
        if tls and self.tls_required:
            fields["tls_required"] = True
        if tls and self.tls_verify:
            fields["tls_verify"] = True
        fields["max_payload"] = self.max_payload
        if self.jetstream:
            fields["jetstream"] = True
        fields["client_id"] = client_id
        fields["client_ip"] = client_ip
        optional: dict[str, object] = {
            "cluster": self.cluster,
            "domain": self.domain,
            "connect_urls": self.connect_urls,
            "ldm": self.lame_duck,
            "connect_info": bool(account),
            "remote_account": account,
            "acc_is_sys": system,
            "api_lvl": self.api_level,
        }
        fields.update({key: value for key, value in optional.items() if value})
        text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
        return b"INFO " + text.encode() + b" \r\n"
