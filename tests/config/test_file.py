"""What a configuration file may say: keys, types, blocks, and every error at once."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from nimsnats.broker.options import User
from nimsnats.config import ConfigError, ServerFlags, Settings, check_file, load_server
from nimsnats.config import file as config_file
from nimsnats.config.settings import for_server
from tests.config import oracle


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, **flags: object) -> Settings:
    Path("t.conf").write_text(text)
    return load_server(ServerFlags(config="t.conf", **flags), {})  # type: ignore[arg-type]


def errors(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return list(caught.value.reasons)


@pytest.mark.usefixtures("here")
class TestMeaning:
    def test_network_limits_and_times(self) -> None:
        settings = load("""
            listen: 127.0.0.1:5222, server_name: n1, client_advertise: "example:4222"
            max_conn: 10, max_subs: 20, max_payload: 2MB, max_pending: 10MB, max_control_line: 8k
            ping_interval: "1m30s", ping_max: 3, write_deadline: 250ms
            lame_duck_duration: 30s, lame_duck_grace_period: 5s, no_header_support: true
        """)
        broker = settings.broker
        assert (broker.host, broker.port, broker.server_name) == ("127.0.0.1", 5222, "n1")
        assert broker.client_advertise == "example:4222"
        assert (broker.max_connections, broker.max_subscriptions) == (10, 20)
        assert (broker.max_payload, broker.max_pending, broker.max_control_line) == (2 << 20, 10 << 20, 8000)
        assert (broker.ping_interval, broker.ping_max, broker.write_deadline) == (90.0, 3, 0.25)
        assert (broker.lame_duck_duration, broker.lame_duck_grace_period) == (30.0, 5.0)
        assert not broker.headers

    def test_nothing_said_means_the_defaults_of_nats_server(self) -> None:
        settings = load("debug: false")
        broker = settings.broker
        assert (broker.host, broker.port, broker.jetstream) == ("0.0.0.0", 4222, False)
        assert (settings.monitor.port, settings.cluster.enabled, settings.forest.enabled) == (0, False, False)
        assert settings.config_file == "t.conf"
        assert settings.config_digest.startswith("sha256:")

    def test_logging_and_monitoring(self) -> None:
        settings = load("""
            debug: on, trace: on, logtime: off, logtime_utc: yes, logfile: "x.log", log_format: json
            log_size_limit: 1k, log_max_num: 3, http: 127.0.0.1:8223, http_base_path: /nats, pid_file: p
        """)
        log = settings.log
        assert (log.debug, log.trace, log.logtime, log.utc) == (True, True, False, True)
        assert (log.file, log.format, log.size_limit, log.max_files) == ("x.log", "json", 1000, 3)
        assert (settings.broker.debug, settings.broker.trace) == (True, True)
        assert (settings.monitor.host, settings.monitor.port) == ("127.0.0.1", 8223)
        assert (settings.monitor.base_path, settings.pid_file) == ("/nats", "p")

    def test_users_of_all_blocks(self) -> None:
        settings = load("""
            authorization { users: [ {user: a, password: p1}, {username: b, pass: $2a$10$hash} ], timeout: 3 }
            accounts { SYS { users: [{user: admin, pass: p2}] }
                       A { jetstream: enabled, users: [{user: c, pass: p3}] } }
            system_account: SYS, no_auth_user: b
        """)
        assert settings.broker.users == [
            User("a", "p1"), User("b", "$2a$10$hash"), User("admin", "p2", "SYS"), User("c", "p3", "A"),
        ]  # fmt: skip
        assert (settings.broker.system_account, settings.broker.auth_timeout) == ("SYS", 3.0)
        assert [(account.name, account.jetstream) for account in settings.accounts] == [("SYS", False), ("A", True)]
        assert any("Plaintext passwords" in text for _, text in settings.notes)

    def test_jetstream(self, here: Path) -> None:
        settings = load("""
            jetstream { store_dir: data, max_mem: 1G, max_file: "10G", sync: always, domain: hub, strict: false
                        cache_size: "8M", limits { max_ack_pending: 5, duplicate_window: 1h } }
        """)
        options = settings.jetstream
        assert settings.broker.jetstream
        assert options.store_dir == settings.data_dir == here / "data" / "jetstream"
        assert (options.max_memory, options.max_file, options.cache_bytes) == (10**9, 10 << 30, 8 << 20)
        assert (options.sync_always, options.domain, options.strict) == (True, "hub", False)
        assert (options.max_ack_pending, options.duplicate_window) == (5, 3600.0)
        assert not load("jetstream: disabled").broker.jetstream
        assert load("jetstream: true").broker.jetstream

    @pytest.mark.parametrize(("value", "always", "interval"), [
        ("always", True, 0.1), ("interval", False, 0.1), ('"2m"', False, 120.0), ("500ms", False, 0.5),
    ])  # fmt: skip
    def test_sync(self, value: str, always: bool, interval: float) -> None:
        settings = load(f"jetstream {{ store_dir: d, sync_interval: {value} }}")
        assert (settings.jetstream.sync_always, settings.jetstream.sync_interval) == (always, interval)
        assert any("before they are on disk" in text for _, text in settings.notes) is not always

    @pytest.mark.parametrize("value", ["0", '"0s"', '"-1s"', "999us", "1ns"])
    def test_a_sync_interval_that_is_none(self, value: str) -> None:
        with pytest.raises(ConfigError, match="sync_interval must be at least 1ms; sync_interval: always syncs before"):
            load(f"jetstream {{ store_dir: d, sync_interval: {value} }}")

    def test_cluster_registry_and_forest(self) -> None:
        settings = load("""
            cluster { name: c1, listen: "0.0.0.0:6333", advertise: "h:1", routes: ["nats://a:6222", b:6222]
                      authorization { user: u, password: p } }
            registry { url: "http://r:8500/", service: s, token: t, heartbeat_interval: 2s, ttl: 10s
                       tls { ca_file: ca.pem } }
            WORD: shh
            forest { enabled: true, trees: ["my.trees:Oak"], nims: my:Nim, builtin: false, demo: true
                     webhooks { stripe: $WORD, other { secrets: [a, b] }, open { unsigned: true } }
                     webhook_max_size: 1MB, webhook_tolerance: 60s }
        """)
        cluster, registry, forest = settings.cluster, settings.registry, settings.forest
        assert (cluster.enabled, cluster.name, cluster.host, cluster.port) == (True, "c1", "0.0.0.0", 6333)
        assert (cluster.advertise, cluster.routes) == ("h:1", ["nats://a:6222", "nats://b:6222"])
        assert (cluster.user, cluster.password, settings.broker.cluster_name) == ("u", "p", "c1")
        assert (registry.url, registry.service, registry.token) == ("http://r:8500", "s", "t")
        assert (registry.heartbeat_interval, registry.ttl, registry.ca_file) == (2.0, 10.0, "ca.pem")
        assert (forest.trees, forest.nims, forest.builtin, forest.demo) == (["my.trees:Oak"], ["my:Nim"], False, True)
        assert {name: (hook.secrets, hook.unsigned) for name, hook in forest.webhooks.items()} == {
            "stripe": (["shh"], False), "other": (["a", "b"], False), "open": ([], True),
        }  # fmt: skip
        assert (forest.webhook_max_size, forest.webhook_tolerance) == (1 << 20, 60.0)

    def test_a_byte_order_mark_is_no_key(self) -> None:
        Path("b.conf").write_bytes(b"\xef\xbb\xbfport: 5000")
        assert load_server(ServerFlags(config="b.conf"), {}).broker.port == 5000

    def test_secrets_are_not_in_the_representation(self) -> None:
        settings = load("registry { token: hush }\nforest { webhooks { s: hush } }\ncluster { port: 1, authorization "
                        "{ user: u, password: hush } }")  # fmt: skip
        assert "hush" not in repr(settings)


AGREED = """
foo: 1|port: abc|debug: 1|max_payload: 0x10|server_name: "a b"|server_name: off|ping_interval: abc|ping_interval: "10"
ping_interval: "10x"|ping_interval: ""|write_deadline: "3"|listen: 127.0.0.1|listen: "a:b"|listen: true|logfile: 5
http: x|cluster { foo: 1, name: a, bar: 2 }|authorization { users: [ {user: a, password: b, foo: c} ] }|cluster: 5
jetstream { foo: 1 }|jetstream: maybe|jetstream: { max_mem: "10X" }|jetstream: { sync_interval: foo }
cluster {name: "a b"}|lame_duck_duration: 5s|max_payload: 9999999999|max_control_line: 9999999999|ping_max: 3.5
authorization { user: a, token: b }|authorization { user: a, users: [{user: b, pass: c}] }
authorization { token: a, users: [{user: b, pass: c}] }|authorization { users: [{user: b, pass: c}, {user: b}] }
authorization { users: [{pass: b}] }|authorization { timeout: x }|accounts: { $G: { } }|accounts: { A { foo: 1 } }
accounts: [A, A]|cluster { listen: "x" }|cluster { port: x }|cluster { authorization { token: a } }
cluster { authorization { users: [] } }|cluster { foo: 1, bar: 2 }, baz: 3|lame_duck_grace_period: "-1s"
max_payload: 104857600|no_auth_user: x|system_account: x|lame_duck_duration: 30s, lame_duck_grace_period: 30s
authorization { users: [{user: a, pass: b}] }, no_auth_user: x|authorization { foo: 1 }
tls { cert_file: a.pem }|tls { cert_file: 5 }|tls: true|cluster { port: -1, tls { verify: maybe } }
"""


@pytest.mark.usefixtures("here")
class TestErrors:
    @pytest.mark.parametrize("text", [text for line in AGREED.split("\n") if line for text in line.split("|")])
    def test_the_words_of_the_go_server(self, text: str, here: Path) -> None:
        """Each error of the Go server is one of ours, which may say more behind it."""
        verdict = oracle.check(text, here)
        if verdict.code == 0:  # it checks this when it starts
            verdict = oracle.run("-c", "t.conf", cwd=here)
        assert verdict.code == 1
        ours = errors(text)
        theirs = verdict.stderr.splitlines()
        assert len(ours) == len(theirs)
        for line in theirs:
            assert any(our.startswith(line) for our in ours), (line, ours)

    def test_all_errors_in_the_order_of_the_file_with_suggestions(self) -> None:
        found = errors("prot: 1\ncluster { nmae: x }\ndebug: 5\n\ntls { cert_file: a }\nzzzz: 1")
        assert found == [
            't.conf:1:0: unknown field "prot" (did you mean "port"?)',
            't.conf:2:11: unknown field "nmae" (did you mean "name"?)',
            "t.conf:3:1: interface conversion: interface {} is int64, not bool (true or false is expected)",
            "t.conf:5:1: missing 'key_file' in TLS configuration",
            't.conf:6:1: unknown field "zzzz"',
        ]

    def test_an_error_in_an_included_file_names_that_file(self) -> None:
        Path("inc.conf").write_text("\nfoo: 1")
        assert errors("include inc.conf") == ['inc.conf:2:1: unknown field "foo"']

    def test_a_key_that_only_serves_as_a_variable_is_known(self) -> None:
        assert load("mine: 5000\nport: $mine").broker.port == 5000
        assert errors("other: 1\nmine: 5000\nport: $mine") == ['t.conf:1:0: unknown field "other"']

    @pytest.mark.parametrize("text", ["tls { verify_and_map: true }", "leafnodes { port: 1 }", "gateway { name: a }",
        "mqtt { port: 1 }", "websocket { port: 1 }", "operator: x", "resolver: MEMORY", "mappings { a: b }",
        "https_port: 1",
        "accounts { A { exports: [] } }", "authorization { users: [{user: a, pass: b, permissions: {}}] }",
        "cluster { tls { pinned_certs: [] } }", "jetstream { cipher: aes }", "proxy_protocol: true",
        "cluster { compression: s2_fast }", "authorization { users: [{nkey: UABC}] }",
        "max_sub_tokens: 3"])  # fmt: skip
    def test_what_we_cannot_yet_is_refused(self, text: str) -> None:
        (error,) = errors(text)
        assert error.startswith("t.conf:1:")
        assert error.endswith("is not supported by nimsnats 0.2.0 yet")

    @pytest.mark.parametrize("text", ["proxy_protocol: false", "max_sub_tokens: 0", "cluster { compression: off }",
        "allow_non_tls: false", "disable_sublist_cache: true", "trace_headers: true", "syslog: no"])  # fmt: skip
    def test_asking_for_what_we_do_anyway_is_fine(self, text: str) -> None:
        load(text)

    @pytest.mark.parametrize(("text", "reason"), [
        ("registry { url: localhost }", '"localhost" is not a registry URL: it must look like http://host:8500'),
        ("registry { heartbeat_interval: 0s }", "heartbeat_interval must be longer than zero"),
        ("forest { trees: [nothing] }", '"nothing" does not name a class: it must look like package.module:Class'),
        ("forest { webhooks { s {} } }", 'webhook "s" needs a secret, or unsigned: true to accept what anybody sends'),
        ("port: 70000", "port 70000 is not a port: it must be between -1 (any free port) and 65535"),
        ("log_format: xml", 'log_format must be text or json, got "xml"'),
        ("store_dir: a\njetstream { store_dir: b }", "Duplicate 'store_dir' configuration"),
        ("authorization: 5", "interface conversion: interface {} is int64, not map[string]interface {} "
         "(a block in braces is expected)"),
        ("tls { cert_file: none.pem, key_file: none.key }", "error parsing X509 certificate/key pair: "
         "none.pem and none.key: No such file or directory"),
    ])  # fmt: skip
    def test_reason(self, text: str, reason: str) -> None:
        (error,) = errors(text)
        assert error.partition(": ")[2] == reason

    def test_no_file(self) -> None:
        with pytest.raises(ConfigError, match=r"^open none.conf: no such file or directory$"):
            load_server(ServerFlags(config="none.conf"), {})

    def test_warnings_do_not_stop_a_server(self) -> None:
        Path("t.conf").write_text("ping_interval: 30\nwrite_deadline: 5")
        heard: list[str] = []
        settings = load_server(ServerFlags(config="t.conf"), {}, warn=heard.append)
        assert settings.broker.ping_interval == 30.0
        reason = 'invalid use of field "ping_interval": ping_interval should be converted to a duration'
        assert heard[0] == f"t.conf:1:0: {reason}"
        assert len(heard) == 2
        assert check_file("t.conf", {})[1] == heard
        Path("t.conf").write_text("# nothing")
        assert check_file("t.conf", {})[1] == ["t.conf: config has no values or is empty"]


def test_every_setting_can_be_set_by_a_known_key() -> None:
    """Building the table checks that each key's attribute exists; every part of the settings has keys."""
    table = config_file._top_level(for_server())
    assert {"registry", "forest", "jetstream", "cluster", "http", "log_file", "authorization"} <= table.keys()
    assert all(key == key.lower() for key in table)
    assert all(is_dataclass(getattr(for_server(), name)) for name in ("broker", "cluster", "forest"))
    assert len(fields(Settings)) > 10
