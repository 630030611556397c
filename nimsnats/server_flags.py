"""nats-server's command line: Go's flag syntax over its table of flags, and its usage text.

Owns: `parse` (arguments to `ServerFlags`) and `USAGE`. Prints nothing and exits nowhere: that is `cli`'s business.

Go's rules: `-x` and `--x` are the same, values come as `-x=v` or `-x v`, switches as `-x` or `-x=true|false` only,
letters do not cluster (`-DV` is one flag), parsing stops at `--` or at the first argument that is no flag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from nimsnats.config.flags import ServerFlags
from nimsnats.version import NATS_VERSION, __version__


class FlagError(Exception):
    """An argument that is no flag of ours, or a value that is none of its flag's; Go's text."""


_STRINGS: Final[Mapping[str, str]] = {
    "a": "host",
    "addr": "host",
    "net": "host",
    "n": "server_name",
    "name": "server_name",
    "server_name": "server_name",
    "P": "pid_file",
    "pid": "pid_file",
    "c": "config",
    "config": "config",
    "sl": "signal",
    "signal": "signal",
    "client_advertise": "client_advertise",
    "ports_file_dir": "ports_file_dir",
    "l": "log_file",
    "log": "log_file",
    "r": "remote_syslog",
    "remote_syslog": "remote_syslog",
    "sd": "store_dir",
    "store_dir": "store_dir",
    "user": "user",
    "pass": "password",
    "auth": "token",
    "tlscert": "tls_cert",
    "tlskey": "tls_key",
    "tlscacert": "tls_ca",
    "routes": "routes",
    "cluster": "cluster",
    "cluster_listen": "cluster_listen",
    "cluster_name": "cluster_name",
    "cluster_advertise": "cluster_advertise",
}
_INTEGERS: Final[Mapping[str, str]] = {
    "p": "port",
    "port": "port",
    "m": "http_port",
    "http_port": "http_port",
    "ms": "https_port",
    "https_port": "https_port",
    "log_size_limit": "log_size_limit",
    "max_traced_msg_len": "max_traced_msg_len",
    "connect_retries": "connect_retries",
    "profile": "profile",
}
_SWITCHES: Final[Mapping[str, str]] = {
    "t": "test",
    "T": "logtime",
    "logtime": "logtime",
    "logtime_utc": "logtime_utc",
    "s": "syslog",
    "syslog": "syslog",
    "D": "debug",
    "debug": "debug",
    "V": "trace",
    "trace": "trace",
    "VV": "trace_verbose",
    "DV": "debug_trace",
    "DVV": "debug_trace_verbose",
    "js": "jetstream",
    "jetstream": "jetstream",
    "tls": "tls",
    "tlsverify": "tls_verify",
    "no_advertise": "no_advertise",
    "h": "help",
    "help": "help",
    "v": "version",
    "version": "version",
    "help_tls": "help_tls",
}
_TRUE: Final = ("1", "t", "T", "TRUE", "true", "True")
_FALSE: Final = ("0", "f", "F", "FALSE", "false", "False")
_LONGEST_INTEGER: Final = 100
_GO_INTEGER: Final = re.compile(r"[+-]?(0[xX](_?[0-9a-fA-F])+|0[bB](_?[01])+|0[oO]?(_?[0-7])*|[1-9](_?[0-9])*)")


def parse(arguments: Sequence[str]) -> tuple[ServerFlags, list[str]]:
    """The flags, and the arguments after them. Raises FlagError at the first bad one."""
    flags = ServerFlags()
    rest = list(arguments)
    while rest:
        argument = rest[0]
        if argument == "--":
            return flags, rest[1:]
        if len(argument) < 2 or not argument.startswith("-"):
            return flags, rest
        del rest[0]
        name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
        if not name or name.startswith("-"):
            raise FlagError(f"bad flag syntax: {argument}")
        if name in _SWITCHES:
            setattr(flags, _SWITCHES[name], _switch(name, value) if equals else True)
            continue
        if name not in _STRINGS and name not in _INTEGERS:
            raise FlagError(f"flag provided but not defined: -{name}")
        if not equals:
            if not rest:
                raise FlagError(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        if name in _INTEGERS:
            setattr(flags, _INTEGERS[name], _integer(name, value))
        else:
            setattr(flags, _STRINGS[name], value)
    return flags, []


def _switch(name: str, value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise FlagError(f'invalid boolean value "{value}" for -{name}: parse error')


def _integer(name: str, value: str) -> int:
    if not _GO_INTEGER.fullmatch(value):
        raise FlagError(f'invalid value "{value}" for flag -{name}: parse error')
    digits = value.replace("_", "")
    if len(digits) > _LONGEST_INTEGER:
        raise FlagError(f'invalid value "{value[:_LONGEST_INTEGER]}…" for flag -{name}: value out of range')
    octal = re.fullmatch(r"([+-]?)0([0-7]+)", digits)
    number = int(octal[1] + octal[2], 8) if octal else int(digits, 0)
    if not -(2**63) <= number < 2**63:
        raise FlagError(f'invalid value "{value}" for flag -{name}: value out of range')
    return number


USAGE: Final = f"""
Usage: nimsnats-server [options]

A NATS server with durable JetStream, in Python (nimsnats {__version__}, speaks NATS {NATS_VERSION}).
Takes nats-server's own flags; one dash or two make no difference.

Server Options:
    -a, --addr, --net <host>         Bind to host address (default: 0.0.0.0)
    -p, --port <port>                Use port for clients (default: 4222, -1 for any free port)
    -n, --name
        --server_name <server_name>  Server name (default: auto)
    -P, --pid <file>                 File to store PID
    -m, --http_port <port>           Use port for http monitoring
    -c, --config <file>              Configuration file
    -t                               Test configuration and exit
    -sl,--signal <signal>[=<pid>]    Send signal to a running server (ldm, stop, quit, term, reopen, reload)
                                     <pid> can be either a PID (e.g. 1) or the path to a PID file
        --client_advertise <string>  Client URL to advertise to other servers
        --ports_file_dir <dir>       Creates a ports file in the specified directory (<executable_name>_<pid>.ports).

Logging Options:
    -l, --log <file>                 File to redirect log output
    -T, --logtime                    Timestamp log entries (default: true)
        --logtime_utc                Timestamps in UTC instead of local timezone (default: false)
    -D, --debug                      Enable debugging output
    -V, --trace                      Trace the raw protocol
    -VV                              Verbose trace (traces system account as well)
    -DV                              Debug and trace
    -DVV                             Debug and verbose trace (traces system account as well)
        --log_size_limit <limit>     Logfile size limit in bytes (default: unlimited)

JetStream Options:
    -js, --jetstream                 Enable JetStream functionality
    -sd, --store_dir <dir>           Set the storage directory (data goes to <dir>/jetstream)

Authorization Options:
        --user <user>                User required for connections
        --pass <password>            Password required for connections
        --auth <token>               Authorization token required for connections

Cluster Options:
        --routes <rurl-1, rurl-2>    Routes to solicit and connect
        --cluster <cluster-url>      Cluster URL for solicited routes
        --cluster_name <string>      Cluster Name
        --no_advertise <bool>        Do not advertise known cluster information to clients
        --cluster_advertise <string> Cluster URL to advertise to other servers
        --connect_retries <number>   For implicit routes, number of connect retries
        --cluster_listen <url>       Cluster url from which members can solicit routes

TLS Options:
        --tls                        Enable TLS, do not verify clients (default: false)
        --tlscert <file>             Server certificate file
        --tlskey <file>              Private key for server certificate
        --tlsverify                  Enable TLS, verify client certificates
        --tlscacert <file>           Client certificate CA for verification

Not supported yet, and refused: --https_port, --syslog, --remote_syslog, --max_traced_msg_len, --profile

Common Options:
    -h, --help                       Show this message
    -v, --version                    Show version
        --help_tls                   TLS help
"""

HELP_TLS: Final = """
TLS for clients: --tlscert and --tlskey name PEM files; --tlsverify asks clients for certificates that --tlscacert (or
else the system) vouches for. In a configuration file: tls { cert_file, key_file, ca_file, verify, timeout,
handshake_first, min_version }.
Between servers: the same block inside cluster { }; there both sides always show a certificate.
"""
