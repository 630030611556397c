"""The table of nats-server's monitoring endpoints: one line each, for HTTP paths and for `$SYS.REQ` names alike.

Owns which options an endpoint has, under which names they come in a URL and in a request's body, and which function
builds the answer. Builders take the view and keyword options; an answer may carry `status_code` for HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from nimsnats.jetstream.api.decode import BOOL, INT, STRING, STRINGS, UINT64, Kind, Struct
from nimsnats.monitor import health, peers
from nimsnats.monitor.accountz import accountz, accstatz
from nimsnats.monitor.clusterz import raftz
from nimsnats.monitor.connz import connz
from nimsnats.monitor.format import JsonObject
from nimsnats.monitor.healthz import healthz
from nimsnats.monitor.jsz import jsz
from nimsnats.monitor.page.facts import nodez
from nimsnats.monitor.query import Reader, boolean, connection_state, integer, subscriptions, text, unsigned
from nimsnats.monitor.subsz import subsz
from nimsnats.monitor.varz import varz

FILTERS: Final[dict[str, Kind]] = {
    "server_name": STRING,
    "cluster": STRING,
    "host": STRING,
    "exact_match": BOOL,
    "tags": STRINGS,
    "domain": STRING,
}
"""Keys by which a request on a PING subject chooses servers."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One kind of information about the server.

    `name` is the last token of its `$SYS.REQ.SERVER` subjects (empty: HTTP only), `paths` its HTTP paths (none: `$SYS`
    only). `readers` are its URL parameters, `body` its JSON keys with their types, `renamed` JSON keys that differ from
    the builder's keyword. `missing` is the text of a 404 when the builder returns None.
    """

    build: Callable[..., JsonObject | None]
    name: str = ""
    paths: tuple[str, ...] = ()
    readers: Mapping[str, Reader] = field(default_factory=dict[str, Reader])
    struct: str = ""
    body: Mapping[str, Kind] = field(default_factory=dict[str, Kind])
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])
    indent: int = 2
    missing: str = ""

    def request(self) -> Struct:
        """The type of a request's body, filters included; unknown keys are ignored."""
        return Struct(self.struct or "EventFilterOptions", {**self.body, **FILTERS}, strict=False)


_CONNZ: Final = Endpoint(
    connz,
    "CONNZ",
    ("/connz",),
    {
        "sort": text("sort"),
        "auth": boolean("auth"),
        "subs": subscriptions,
        "offset": integer("offset"),
        "limit": integer("limit"),
        "cid": unsigned("cid"),
        "state": connection_state,
        "user": text("user"),
        "acc": text("acc"),
        "mqtt_client": text("mqtt_client"),
    },
    "ConnzEventOptions",
    {
        "sort": STRING,
        "auth": BOOL,
        "subscriptions": BOOL,
        "subscriptions_detail": BOOL,
        "offset": INT,
        "limit": INT,
        "cid": UINT64,
        "mqtt_client": STRING,
        "state": INT,
        "user": STRING,
        "acc": STRING,
        "filter_subject": STRING,
    },
)
_SUBSZ: Final = Endpoint(
    subsz,
    "SUBSZ",
    ("/subsz", "/subscriptionsz"),
    {
        "subs": boolean("subscriptions"),
        "offset": integer("offset"),
        "limit": integer("limit"),
        "acc": text("account"),
        "test": text("test"),
    },
    "SubszEventOptions",
    {"offset": INT, "limit": INT, "subscriptions": BOOL, "account": STRING, "test": STRING},
)
_JSZ: Final = Endpoint(
    jsz,
    "JSZ",
    ("/jsz",),
    {
        "acc": text("account"),
        "accounts": boolean("accounts"),
        "streams": boolean("streams"),
        "consumers": boolean("consumer"),
        "direct-consumers": boolean("direct_consumer"),
        "config": boolean("config"),
        "offset": integer("offset"),
        "limit": integer("limit"),
        "leader-only": boolean("leader_only"),
        "raft": boolean("raft"),
        "stream-leader-only": boolean("stream_leader_only"),
    },
    "JszEventOptions",
    {
        "account": STRING,
        "accounts": BOOL,
        "streams": BOOL,
        "consumer": BOOL,
        "direct_consumer": BOOL,
        "config": BOOL,
        "leader_only": BOOL,
        "offset": INT,
        "limit": INT,
        "raft": BOOL,
        "stream_leader_only": BOOL,
    },
)
_HEALTHZ: Final = Endpoint(
    healthz,
    "HEALTHZ",
    ("/healthz",),
    {
        "js-enabled": boolean("js_enabled_only"),
        "js-enabled-only": boolean("js_enabled_only"),
        "js-server-only": boolean("js_server_only"),
        "js-meta-only": boolean("js_meta_only"),
        "account": text("account"),
        "stream": text("stream"),
        "consumer": text("consumer"),
        "details": boolean("details"),
    },
    "HealthzEventOptions",
    {
        "js-enabled-only": BOOL,
        "js-server-only": BOOL,
        "js-meta-only": BOOL,
        "account": STRING,
        "stream": STRING,
        "consumer": STRING,
        "details": BOOL,
    },
    {"js-enabled-only": "js_enabled_only", "js-server-only": "js_server_only", "js-meta-only": "js_meta_only"},
    indent=0,
)

ENDPOINTS: Final = (
    Endpoint(varz, "VARZ", ("/varz",), struct="VarzEventOptions"),
    _CONNZ,
    _SUBSZ,
    _JSZ,
    _HEALTHZ,
    Endpoint(
        accountz,
        "ACCOUNTZ",
        ("/accountz",),
        {"acc": text("account")},
        "AccountzEventOptions",
        {"account": STRING},
    ),
    Endpoint(
        accstatz,
        "",
        ("/accstatz",),
        {"unused": boolean("include_unused")},
        "AccountStatzEventOptions",
        {"accounts": STRINGS, "include_unused": BOOL},
    ),
    Endpoint(
        peers.routez,
        "ROUTEZ",
        ("/routez",),
        {"subs": subscriptions},
        "RoutezEventOptions",
        {"subscriptions": BOOL, "subscriptions_detail": BOOL},
    ),
    Endpoint(
        peers.gatewayz,
        "GATEWAYZ",
        ("/gatewayz",),
        {"gw_name": text("name"), "accs": boolean("accounts"), "acc_name": text("account_name"), "subs": subscriptions},
        "GatewayzEventOptions",
        {"name": STRING, "accounts": BOOL, "account_name": STRING, "subscriptions": BOOL, "subscriptions_detail": BOOL},
    ),
    Endpoint(
        peers.leafz,
        "LEAFZ",
        ("/leafz",),
        {"subs": boolean("subscriptions"), "acc": text("account")},
        "LeafzEventOptions",
        {"subscriptions": BOOL, "account": STRING},
    ),
    Endpoint(
        peers.ipqueuesz,
        "IPQUEUESZ",
        ("/ipqueuesz",),
        {"all": boolean("all"), "queues": text("filter")},
        "IpqueueszEventOptions",
        {"all": BOOL, "filter": STRING},
        indent=3,
    ),
    Endpoint(
        raftz,
        "RAFTZ",
        ("/raftz",),
        {"acc": text("account"), "group": text("group")},
        "RaftzEventOptions",
        {"account": STRING, "group": STRING},
        indent=3,
        missing="No Raft nodes registered",
    ),
    Endpoint(nodez, "NODEZ"),
    Endpoint(health.overall, paths=("/health",)),
    Endpoint(health.cluster, paths=("/health/cluster",)),
    Endpoint(health.registry, paths=("/health/registry",)),
)

BY_NAME: Final = {endpoint.name: endpoint for endpoint in ENDPOINTS if endpoint.name}
