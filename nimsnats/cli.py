"""The command line: run a node, a server alone, a registry, or the forest on somebody else's NATS.

Owns: what is printed before the log starts, exit codes, and the event loop's type. The parts are imported when their
command runs, so that `--help` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from nimsnats.version import NATS_VERSION, __version__

if TYPE_CHECKING:
    from nimsnats.config import Settings
    from nimsnats.log import LogSettings

_PROGRAM = "nimsnats"
_SERVER = "nats-server"  # error texts of the server command are nats-server's own, scripts look for them


def main(arguments: Sequence[str] | None = None) -> int:
    """The `nimsnats` command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return cast("int | None", node.main(given, prog_name=_PROGRAM, standalone_mode=False)) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.Abort:
        return 130


def server_main(arguments: Sequence[str] | None = None) -> int:
    """The `nimsnats-server` command, a stand-in for `nats-server`; returns the exit code."""
    from nimsnats import server_flags

    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        flags, rest = server_flags.parse(given)
    except server_flags.FlagError as error:
        click.echo(error, err=True)
        click.echo(server_flags.USAGE)
        return 0  # as nats-server does
    word = rest[0].lower() if rest else ""
    if flags.version or (word == "version" and not flags.help):
        click.echo(f"{_SERVER}: v{NATS_VERSION} (nimsnats {__version__})")
        return 0
    if flags.help or (word == "help" and not flags.help_tls):
        click.echo(server_flags.USAGE)
        return 0
    if flags.help_tls:
        click.echo(server_flags.HELP_TLS)
        return 0
    if rest:
        return _fail(_SERVER, f'unrecognized command: "{rest[0]}"')
    if flags.signal is not None:
        return _signal(flags.signal)
    if flags.test:
        return _check(flags.config)
    from nimsnats.config import load_server
    from nimsnats.secret_arguments import hide

    hide(flags.password, flags.token)
    return _run(_SERVER, lambda: load_server(flags, warn=_warn), whole=False)


class _RawCommand(click.Command):
    """A command that parses its own arguments, `--help` included."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = args
        return args


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--registry-url", metavar="URL", help="Registry that says who the peers are, e.g. http://host:8500. "
              "Without one the node runs its own and prints the URL that other nodes can join with.")  # fmt: skip
@click.option("--registry-service", metavar="NAME", help="Service name in the registry.  [default: nimsforest]")
@click.option("--registry-token", metavar="TOKEN", help="Bearer token for the registry; better: REGISTRY_TOKEN.")
@click.option("--heartbeat-interval", metavar="DURATION", help="Registry heartbeat interval.  [default: 10s]")
@click.option("--node-name", metavar="NAME", help="Unique name of this node.  [default: the host's name]")
@click.option("--data-dir", metavar="DIR", help="Where streams are stored.  [default: /var/lib/nimsforest/jetstream, "
              "or the user's data directory where that cannot be written]")  # fmt: skip
@click.option("--client-port", type=int, metavar="PORT", help="Port for NATS clients.  [default: 4222]")
@click.option("--cluster-port", type=int, metavar="PORT", help="Port for other nodes.  [default: 6222]")
@click.option("--monitor-port", type=int, metavar="PORT", help="HTTP port: health, metrics, webhooks, registry; 0 "
              "switches it off.  [default: 8222]")  # fmt: skip
@click.option("-c", "--config", metavar="FILE", help="Configuration file, in NATS configuration format.")
@click.option("--cluster-name", metavar="NAME", help="Name of the cluster.  [default: nimsforest]")
@click.option("--advertise", metavar="HOST[:PORT]", help="Address that other nodes dial.  [default: found by itself]")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Log lines as text or JSON.  [default: text]")
@click.option("--demo", is_flag=True, help="Feed the forest sample payments.")
@click.option("-D", "--debug", is_flag=True, help="Log debugging output.")
@click.option("-V", "--trace", is_flag=True, help="Log every protocol line.")
@click.version_option(__version__, "-v", "--version", message=f"nimsnats {__version__} (NATS {NATS_VERSION})")
@click.pass_context
def node(ctx: click.Context, **flags: Any) -> int:
    """Run a NimsForest node: a NATS server with durable streams, a cluster member, and the forest, in one process.

    \b
    nimsnats                                        a cluster of one
    nimsnats --registry-url http://first-node:8222  join the cluster of the first node
    nimsnats server -p 4222 -js                     a NATS server alone, with nats-server's own flags

    A port of -1 means any free port. Settings come from these flags, then from the environment (REGISTRY_URL,
    REGISTRY_SERVICE_NAME, REGISTRY_HEARTBEAT_INTERVAL, REGISTRY_TOKEN, NATS_NODE_NAME, NATS_DATA_DIR, NATS_CLIENT_PORT,
    NATS_CLUSTER_PORT, NATS_MONITOR_PORT), then from the file, then from the defaults.
    """
    if ctx.invoked_subcommand is not None:
        return 0
    from nimsnats.config import NodeFlags, load_node
    from nimsnats.secret_arguments import hide

    hide(flags["registry_token"])
    return _run(_PROGRAM, lambda: load_node(NodeFlags(**flags), warn=_warn), whole=True)


@node.command(cls=_RawCommand, short_help="Run a NATS server alone, with nats-server's own flags.")
@click.pass_context
def server(ctx: click.Context) -> int:
    """Run the server alone."""
    return server_main(ctx.args)


@node.command(cls=_RawCommand, short_help="Run the forest alone, on any NATS server.")
@click.pass_context
def forest(ctx: click.Context) -> int:
    """Run the forest alone."""
    from forest.__main__ import parser, run
    from nimsnats.log import LogSettings

    grammar = parser()
    grammar.prog = f"{_PROGRAM} forest"
    try:
        arguments = grammar.parse_args(ctx.args)
    except SystemExit as leave:  # argparse has printed its help or its complaint
        return leave.code if isinstance(leave.code, int) else 1
    if not _start_logging(_PROGRAM, LogSettings()):
        return 1
    return _loop(run(arguments))


@node.command()
@click.option("--listen", default="127.0.0.1:8500", show_default=True, metavar="HOST:PORT", help="Where to listen.")
@click.option("--ttl", default="30s", show_default=True, metavar="DURATION", help="How long a silent node is kept.")
@click.option("--data-dir", metavar="DIR", help="Keep registrations here over restarts.  [default: in memory]")
@click.option("--token", envvar="REGISTRY_TOKEN", default="", metavar="TOKEN", help="Ask every client for this bearer "
              "token; better set as REGISTRY_TOKEN.")  # fmt: skip
@click.option("--tls-cert", default="", metavar="FILE", help="Speak HTTPS only, with this certificate.")
@click.option("--tls-key", default="", metavar="FILE", help="The certificate's private key.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("-D", "--debug", is_flag=True, help="Log debugging output.")
def registry(
    listen: str,
    ttl: str,
    data_dir: str | None,
    token: str,
    tls_cert: str,
    tls_key: str,
    log_format: Literal["text", "json"],
    debug: bool,
) -> int:
    """Run a registry alone: where nodes register and find each other.

    With NATS_CLUSTER_SECRET in its environment, or a token, it lets nobody else in. Nodes that share the secret prove
    it to the registry, and the registry to them; it is never sent.
    """
    import os
    from pathlib import Path

    from nimsnats.broker.tls import TlsOptions
    from nimsnats.config import parse_duration
    from nimsnats.descriptors import raise_limit, shortage
    from nimsnats.log import LogSettings
    from nimsnats.notify import Notify
    from nimsnats.registry.errors import RegistryError
    from nimsnats.registry.server import serve
    from nimsnats.runtime import StartError
    from nimsnats.secret_arguments import hide

    hide(token)
    raise_limit()
    if lacking := shortage():
        return _fail(_PROGRAM, lacking)
    if bool(tls_cert) != bool(tls_key):
        return _fail(_PROGRAM, "--tls-cert and --tls-key need each other")
    try:
        seconds = parse_duration(ttl)
        tls = TlsOptions(tls_cert, tls_key).listening(verify=False) if tls_cert else None
    except ValueError as error:
        return _fail(_PROGRAM, f"--ttl: {error}")
    except StartError as error:
        return _fail(_PROGRAM, str(error))
    if not _start_logging(_PROGRAM, LogSettings(format=log_format, debug=debug)):
        return 1

    async def run() -> int:
        import asyncio
        import signal

        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            kept = Path(data_dir) if data_dir else None
            manager = Notify.from_environment()
            secret = os.environ.get("NATS_CLUSTER_SECRET", "")
            await serve(
                listen, ttl=seconds, data_dir=kept, token=token, secret=secret, tls=tls, stop=stop, notify=manager
            )
        except (RegistryError, OSError) as error:
            return _fatal(str(error))
        return 0

    return _loop(run())


@node.command()
@click.option("--url", default="http://127.0.0.1:8222", show_default=True, help="The node's HTTP port.")
@click.option("--json", "as_json", is_flag=True, help="Print the node's health, with its cluster below `overview`.")
@click.option("--watch", is_flag=True, help="Print it again every second, until Ctrl-C.")
def status(url: str, as_json: bool, watch: bool) -> int:
    """Say how a running node and its cluster are: exit code 1 when the node is unhealthy or not there."""
    from nimsnats.status import NoAnswer, status

    try:
        return status(url, as_json=as_json, watch=watch)
    except NoAnswer as error:
        return _fail(_PROGRAM, str(error))


@node.command()
@click.option("--url", default="http://127.0.0.1:8222", show_default=True, help="The node's HTTP port.")
def top(url: str) -> int:
    """Watch a cluster from a terminal; q ends it. Without a terminal: print it once."""
    from nimsnats.status import NoAnswer, top

    try:
        return top(url)
    except NoAnswer as error:
        return _fail(_PROGRAM, str(error))


@node.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print what makes SHELL complete this command's words.

    \b
    bash:  eval "$(nimsnats completion bash)"                                   in ~/.bashrc
    zsh:   eval "$(nimsnats completion zsh)"                                    in ~/.zshrc
    fish:  nimsnats completion fish > ~/.config/fish/completions/nimsnats.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(node, {}, _PROGRAM, f"_{_PROGRAM.upper()}_COMPLETE").source())
    return 0


@node.command()
@click.option("--env-file", metavar="FILE", help="The service's environment file, e.g. /etc/nimsforest/nimsforest.env.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def doctor(ctx: click.Context, env_file: str | None, as_json: bool) -> int:
    """Look this machine over and say what to change; exit code 1 when a node would not run as it should.

    Takes the node's own flags before its name: nimsnats --data-dir /srv/data doctor. Changes nothing.
    """
    import os
    from pathlib import Path

    from nimsnats import doctor as rooms
    from nimsnats.config import NodeFlags
    from nimsnats.runtime import Runtime

    def parse(words: list[str]) -> NodeFlags:
        try:
            return NodeFlags(**node.make_context(_PROGRAM, words).params)
        except (click.ClickException, click.exceptions.Exit) as error:
            raise ValueError(getattr(error, "message", "it asks for help")) from None

    flags = NodeFlags(**ctx.find_root().params)
    patient = rooms.Patient(os.environ, flags, Path(env_file) if env_file else None, parse)

    async def run() -> int:
        findings = await rooms.examine(patient, Runtime.real())
        click.echo(rooms.as_json(findings) if as_json else rooms.as_text(findings))
        return rooms.exit_code(findings)

    return _loop(run())


def _add_backup_command(name: str, short_help: str) -> None:
    """One of the commands of `nimsnats.backup`, imported when it runs."""

    @node.command(name, cls=_RawCommand, short_help=short_help)
    @click.pass_context
    def command(ctx: click.Context) -> int:  # pyright: ignore[reportUnusedFunction]
        from nimsnats.backup import commands

        known = {"backup": commands.backup, "restore": commands.restore, "verify": commands.verify,
                 "recover": commands.recover}  # fmt: skip
        chosen = known.get(name, commands.export)
        return cast("int | None", chosen.main(ctx.args, prog_name=f"{_PROGRAM} {name}", standalone_mode=False)) or 0


_add_backup_command("backup", "Back up the streams of an account into a directory.")
_add_backup_command("restore", "Restore streams from a backup.")
_add_backup_command("verify", "Check a data directory, or a backup, without changing it.")
_add_backup_command("recover", "Make a stopped node go on alone: the last resort when the others are lost for good.")
_add_backup_command("export", "Write messages as JSON lines or CSV.")


def _run(program: str, load: Callable[[], Settings], *, whole: bool) -> int:
    """Load the settings, start the log, and run the whole node or the server alone until it stops."""
    from nimsnats.config import ConfigError
    from nimsnats.descriptors import raise_limit, shortage
    from nimsnats.runtime import StartError

    raise_limit()
    if lacking := shortage():
        return _fail(program, lacking)
    try:
        settings = load()
    except (ConfigError, StartError) as error:
        return _fail(program, str(error))
    if not _start_logging(program, settings.log):
        return 1
    if settings.pid_file and not _write_pid(settings.pid_file):
        return 1

    from nimsnats.node import run_node, run_server

    async def run() -> int:
        try:
            return await (run_node if whole else run_server)(settings)
        except StartError as error:
            return _fatal(str(error))
        except OSError as error:
            return _fatal(error.strerror or str(error))  # str() of our own ones begins with [Errno …]

    return _loop(run())


def _loop(work: Coroutine[Any, Any, int]) -> int:
    import asyncio
    import faulthandler

    import uvloop

    if not faulthandler.is_enabled():
        faulthandler.enable(2)  # a watchdog that ends a stuck process (SIGABRT) leaves the place in its log
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _start_logging(program: str, settings: LogSettings) -> bool:
    from nimsnats.log import start_logging

    try:
        start_logging(settings)
    except OSError as error:
        _fail(program, f"error opening file: open {settings.file}: {(error.strerror or str(error)).lower()}")
        return False
    return True


def _write_pid(path: str) -> bool:
    import os

    from nimsnats import files

    try:
        files.write(path, str(os.getpid()), 0o644)  # for whoever sends signals or watches
    except OSError as error:
        _fatal(f"Could not write pidfile: open {path}: {(error.strerror or str(error)).lower()}")
        return False
    return True


def _signal(request: str) -> int:
    from nimsnats.send_signal import SignalError, send_signal

    try:
        send_signal(request)
    except SignalError as error:
        return _fail(_SERVER, str(error))
    return 0


def _check(path: str | None) -> int:
    """`-t`: test the configuration file and say so; warnings alone are a failure, too."""
    from nimsnats.config import ConfigError, check_file

    if not path:
        return _fail(_SERVER, "must specify [-c, --config] option to check configuration file syntax")
    try:
        digest, warnings = check_file(path)
    except ConfigError as error:
        return _fail(_SERVER, str(error))
    if warnings:
        return _fail(_SERVER, "\n".join(warnings))
    click.echo(f"{_SERVER}: configuration file {path} is valid ({digest})", err=True)
    return 0


def _warn(line: str) -> None:
    click.echo(line, err=True)


def _fail(program: str, reason: str) -> int:
    """Say why before there is a log; the exit code."""
    click.echo(f"{program}: {reason}", err=True)
    return 1


def _fatal(reason: str) -> int:
    """Say why in the log, in one line; the exit code."""
    import logging

    from nimsnats.log import FATAL

    logging.getLogger("nimsnats").log(FATAL, "%s", " ".join(reason.split()))
    return 1
