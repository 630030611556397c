"""Flags win over the environment, the environment over the file, the file over the defaults."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from nimsnats.broker.options import User
from nimsnats.broker.tls import TlsOptions
from nimsnats.config import ConfigError, NodeFlags, ServerFlags, Settings, load_node, load_server
from nimsnats.runtime import StartError
from tests.certificates import Authority, block, needs_openssl

Read = Callable[[Settings], object]

# flag, its value; variable, its text; line of a file; how to read the setting; values by source; default
MATRIX: list[tuple[str, object, str, str, str, Read, object, object, object, object]] = [
    ("registry_url", "http://f:1", "REGISTRY_URL", "http://e:1", "registry { url: 'http://c:1' }",
     lambda s: s.registry.url, "http://f:1", "http://e:1", "http://c:1", ""),
    ("registry_service", "f", "REGISTRY_SERVICE_NAME", "e", "registry { service: c }",
     lambda s: s.registry.service, "f", "e", "c", "nimsforest"),
    ("heartbeat_interval", "1s", "REGISTRY_HEARTBEAT_INTERVAL", "2m", "registry { heartbeat_interval: 3s }",
     lambda s: s.registry.heartbeat_interval, 1.0, 120.0, 3.0, 10.0),
    ("registry_token", "f", "REGISTRY_TOKEN", "e", "registry { token: c }",
     lambda s: s.registry.token, "f", "e", "c", ""),
    ("node_name", "f", "NATS_NODE_NAME", "e", "server_name: c",
     lambda s: (s.node_name, s.broker.server_name), ("f", "f"), ("e", "e"), ("c", "c"), (socket.gethostname(),) * 2),
    ("client_port", -1, "NATS_CLIENT_PORT", "2", "port: 3", lambda s: s.broker.port, -1, 2, 3, 4222),
    ("cluster_port", 1, "NATS_CLUSTER_PORT", "-1", "cluster { port: 3 }", lambda s: s.cluster.port, 1, -1, 3, 6222),
    ("monitor_port", 0, "NATS_MONITOR_PORT", "2", "http_port: 3", lambda s: s.monitor.port, 0, 2, 3, 8222),
    ("data_dir", "/tmp/f", "NATS_DATA_DIR", "/tmp/e", "data_dir: /tmp/c",
     lambda s: (str(s.data_dir), s.jetstream.store_dir == s.data_dir), ("/tmp/f", True), ("/tmp/e", True),
     ("/tmp/c", True), None),
    ("cluster_name", "f", "", "", "cluster { name: c }",
     lambda s: (s.cluster.name, s.broker.cluster_name), ("f", "f"), None, ("c", "c"), ("nimsforest", "nimsforest")),
    ("advertise", "f:1", "", "", "cluster { advertise: 'c:1' }", lambda s: s.cluster.advertise, "f:1", None, "c:1", ""),
    ("log_format", "json", "", "", "log_format: json", lambda s: s.log.format, "json", None, "json", "text"),
    ("demo", True, "", "", "forest { demo: true }", lambda s: s.forest.demo, True, None, True, False),
    ("debug", True, "", "", "debug: true", lambda s: s.broker.debug, True, None, True, False),
]  # fmt: skip


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row[0])
def test_precedence(row: tuple[object, ...], tmp_path: Path) -> None:
    flag, given, variable, text, line, read, by_flag, by_environment, by_file, default = row
    assert callable(read)
    config = tmp_path / "n.conf"
    config.write_text(str(line))
    environ = {str(variable): str(text)} if variable else {}
    flags = {"config": str(config), str(flag): given}

    def settings(flags: dict[str, object], environ: dict[str, str]) -> Settings:
        return load_node(NodeFlags(**flags), environ, default_dir=tmp_path / "data")  # type: ignore[arg-type]

    assert read(settings(flags, environ)) == by_flag
    if variable:
        assert read(settings({"config": str(config)}, environ)) == by_environment
    assert read(settings({"config": str(config)}, {})) == by_file
    assert read(settings({}, {})) == (default if flag != "data_dir" else (str(tmp_path / "data"), True))


def node(environ: dict[str, str], tmp_path: Path, **flags: object) -> Settings:
    return load_node(NodeFlags(**flags), environ, default_dir=tmp_path / "data")  # type: ignore[arg-type]


def test_a_node_is_a_cluster_of_one_with_everything_on(tmp_path: Path) -> None:
    settings = node({}, tmp_path)
    assert settings.broker.jetstream
    assert settings.jetstream.sync_always
    assert settings.cluster.enabled
    assert settings.forest.enabled
    assert settings.monitor.host == "0.0.0.0"
    assert settings.notes == []


def test_webhook_secrets_from_the_environment(tmp_path: Path) -> None:
    hooks = node({"FOREST_WEBHOOK_STRIPE": "new, old", "FOREST_WEBHOOK_OFF": " "}, tmp_path).forest.webhooks
    assert {name: hook.secrets for name, hook in hooks.items()} == {"stripe": ["new", "old"]}


def test_all_bad_variables_are_named(tmp_path: Path) -> None:
    environ = {
        "NATS_CLIENT_PORT": "x",
        "NATS_MONITOR_PORT": "70000",
        "REGISTRY_URL": "nowhere",
        "REGISTRY_HEARTBEAT_INTERVAL": "10",
    }
    with pytest.raises(ConfigError) as caught:
        node(environ, tmp_path)
    assert caught.value.reasons == (
        'NATS_CLIENT_PORT="x" is not a port number',
        "NATS_MONITOR_PORT 70000 is not a port: it must be between -1 (any free port) and 65535",
        'REGISTRY_URL: "nowhere" is not a registry URL: it must look like http://host:8500',
        'REGISTRY_HEARTBEAT_INTERVAL: time: missing unit in duration "10"',
    )


@pytest.mark.parametrize(("flags", "reason"), [
    ({"client_port": 65536}, "client port 65536 is not a port: it must be between -1 (any free port) and 65535"),
    ({"registry_url": "x"}, '"x" is not a registry URL: it must look like http://host:8500'),
    ({"heartbeat_interval": "0s"}, "heartbeat interval must be longer than zero, got 0s"),
    ({"node_name": "a b"}, "server name cannot contain spaces"),
    ({"cluster_name": "a b"}, "cluster name cannot contain spaces"),
    *(
        ({"advertise": text}, f'cannot advertise "{text}": it must be a host, or host:port, that other nodes can dial')
        for text in ("http://oak/", "oak:99999", "oak:", ":6222", "a:b:c", "oak:-1", "o ak")
    ),
])  # fmt: skip
def test_bad_flags(flags: dict[str, object], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        node({}, tmp_path, **flags)
    assert str(caught.value) == reason


class TestDataDirectory:
    def test_an_unwritable_default_falls_back_to_the_users_own_and_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        default = tmp_path / "file" / "jetstream"
        settings = load_node(NodeFlags(), {"HOME": str(tmp_path)}, default_dir=default)
        own = tmp_path / ".local/share/nimsforest/jetstream"
        assert settings.data_dir == settings.jetstream.store_dir == own
        reason = f"Data directory {default} is not writable ({tmp_path}/file is not a directory), using {own}"
        assert settings.notes == [(30, reason)]
        xdg = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "xdg")}
        settings = load_node(NodeFlags(), xdg, default_dir=default)
        assert settings.data_dir == tmp_path / "xdg/nimsforest/jetstream"
        assert not settings.data_dir.exists()  # found, not made

    def test_an_unwritable_one_that_was_asked_for_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        reason = f"cannot use data directory {tmp_path}/file/x: {tmp_path}/file is not a directory"
        with pytest.raises(StartError) as caught:
            node({"NATS_DATA_DIR": f"{tmp_path}/file/x"}, tmp_path)
        assert str(caught.value) == reason
        with pytest.raises(StartError) as caught:
            load_server(ServerFlags(jetstream=True, store_dir=f"{tmp_path}/file"), {})
        assert "is not a directory" in str(caught.value)

    def test_nowhere_to_go(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        bad = tmp_path / "file"
        with pytest.raises(StartError, match="use --data-dir"):
            load_node(NodeFlags(), {"HOME": str(bad)}, default_dir=bad / "x")

    def test_here_is_a_directory_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert node({}, tmp_path, data_dir=".").data_dir == tmp_path


class TestServer:
    def test_flags_win_over_the_file(self, tmp_path: Path) -> None:
        config = tmp_path / "s.conf"
        config.write_text(
            "port: 1, host: a, server_name: f, http: 5, debug: false, jetstream: false, pid_file: p\n"
            "authorization { user: u, password: x }, cluster { name: c, port: 3 }"
        )
        flags = ServerFlags(
            config=str(config), port=-1, host="127.0.0.1", server_name="n", http_port=6, debug_trace=True,
            jetstream=True, store_dir=str(tmp_path), user="u", password="y", cluster="nats://a:b%20c@127.0.0.1:-1",
            routes="nats://h:1, i:2",
            cluster_name="d", connect_retries=4, log_file="l", logtime=False, pid_file="q", no_advertise=True,
        )  # fmt: skip
        settings = load_server(flags, {"NATS_CLIENT_PORT": "9"})
        broker, cluster = settings.broker, settings.cluster
        assert (broker.port, broker.host, broker.server_name, settings.monitor.port) == (-1, "127.0.0.1", "n", 6)
        assert (settings.log.debug, settings.log.trace, settings.log.logtime, settings.log.file) == (
            True,
            True,
            False,
            "l",
        )
        assert (broker.jetstream, settings.data_dir) == (True, tmp_path / "jetstream")
        assert broker.users == [User("u", "y")]
        assert (cluster.host, cluster.port, cluster.user, cluster.password) == ("127.0.0.1", -1, "a", "b c")
        assert (cluster.name, cluster.routes, cluster.connect_retries) == ("d", ["nats://h:1", "nats://i:2"], 4)
        assert (settings.pid_file, cluster.no_advertise) == ("q", True)

    def test_a_temporary_store_is_warned_of(self) -> None:
        settings = load_server(ServerFlags(jetstream=True), {})
        assert settings.data_dir.parts[-2:] == ("nats", "jetstream")
        text = "Temporary storage directory used, data could be lost on system reboot"
        assert (30, text) in settings.notes

    @pytest.mark.parametrize(("flags", "reason"), [
        ({"routes": "nats://h:1"}, "solicited routes require cluster capabilities, e.g. --cluster"),
        ({"cluster": "nats://127.0.0.1"}, "address 127.0.0.1: missing port in address"),
        ({"cluster": "nats://u@127.0.0.1:1"}, "expected cluster password to be set"),
        ({"tls": True}, "TLS Server certificate must be present and valid"),
        ({"tls_cert": "c", "tls": True}, "TLS Server private key must be present and valid"),
        ({"syslog": True}, "flag --syslog is not supported by nimsnats 0.2.0 yet"),
        ({"cluster": "nats://127.0.0.1:1", "routes": "tls://h:1"}, "a route's URL asks for TLS, but the cluster block "
         "has no tls"),
    ])  # fmt: skip
    def test_errors(self, flags: dict[str, object], reason: str) -> None:
        with pytest.raises(ConfigError) as caught:
            load_server(ServerFlags(**flags), {})  # type: ignore[arg-type]
        assert str(caught.value) == reason


def test_reload_reads_the_same_sources_again(tmp_path: Path) -> None:
    config = tmp_path / "r.conf"
    config.write_text("port: 5000, max_payload: 100")
    settings = load_server(ServerFlags(config=str(config), port=6000), {})
    config.write_text("port: 5000, max_payload: 200")
    assert settings.reload is not None
    again = settings.reload()
    assert (again.broker.port, again.broker.max_payload) == (6000, 200)
    assert again.config_digest != settings.config_digest


def test_a_cluster_secret_is_the_password_of_a_fixed_user_unless_the_file_names_one(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "NATS_CLUSTER_SECRET": "s3cret"}
    cluster = load_node(NodeFlags(data_dir=str(tmp_path)), environment).cluster
    assert (cluster.user, cluster.password) == ("nimsnats", "s3cret")
    file = tmp_path / "nats.conf"
    file.write_text("cluster { authorization { user: u, password: p } }")
    cluster = load_node(NodeFlags(data_dir=str(tmp_path), config=str(file)), environment).cluster
    assert (cluster.user, cluster.password) == ("u", "s3cret")


@needs_openssl
def test_the_files_of_the_cluster_port_by_environment_and_those_of_the_client_port_by_flags(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "ca")
    cert, key = authority.issue("one")
    file = tmp_path / "nats.conf"
    file.write_text(f"cluster {{ {block(authority.options('two', timeout=5.0))} }}")
    environment = {"HOME": str(tmp_path), "NATS_CLUSTER_TLS_CERT": cert, "NATS_CLUSTER_TLS_KEY": key}
    tls = load_node(NodeFlags(data_dir=str(tmp_path), config=str(file)), environment).cluster.tls
    assert tls == TlsOptions(cert, key, authority.ca)
    with pytest.raises(ConfigError, match=r"NATS_CLUSTER_TLS_CERT.*missing 'key_file'"):
        load_node(NodeFlags(data_dir=str(tmp_path)), {"HOME": str(tmp_path), "NATS_CLUSTER_TLS_CERT": cert})
    flags = ServerFlags(tls_cert=cert, tls_key=key, tls_ca=authority.ca, tls_verify=True)
    assert load_server(flags, {}).broker.tls == TlsOptions(cert, key, authority.ca, verify=True)
