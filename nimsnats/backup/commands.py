"""The commands `nimsnats backup`, `restore`, `verify`, `recover` and `export`: arguments, words and exit codes.

Owns what is printed. Results go to standard output, progress and complaints to standard error. Exit codes: 0 for done,
1 for anything that is not as it should be.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from nimsnats.backup.files import MANIFEST, Damaged, Manifest, read_messages
from nimsnats.backup.link import Credentials, Link, Refused, connected
from nimsnats.backup.progress import Progress, sized
from nimsnats.files import PRIVATE
from nimsnats.jetstream.clock import format_time
from nimsnats.runtime import Runtime
from nimsnats.storage import StorageError

if TYPE_CHECKING:
    from nimsnats.backup.recover import Survey

_PROGRAM: Final = "nimsnats"
_SECOND: Final = 10**9


def _connection(command: Callable[..., int]) -> Callable[..., int]:
    """The options of a connection."""
    file = click.Path(exists=True, dir_okay=False)
    for option in reversed(
        (
            click.option("-s", "--server", envvar="NATS_URL", default="nats://127.0.0.1:4222", show_default=True,
                         metavar="URL", help="Any server of the cluster (NATS_URL)."),
            click.option("--user", envvar="NATS_USER", default="", metavar="NAME", help="(NATS_USER)"),
            click.option("--password", envvar="NATS_PASSWORD", default="", metavar="TEXT", help="(NATS_PASSWORD)"),
            click.option("--token", envvar="NATS_TOKEN", default="", metavar="TEXT", help="(NATS_TOKEN)"),
            click.option("--creds", envvar="NATS_CREDS", type=file, help="User credentials (NATS_CREDS)."),
            click.option("--nkey", envvar="NATS_NKEY", type=file, help="User nkey seed (NATS_NKEY)."),
            click.option("--tlsca", envvar="NATS_CA", type=file, help="Authorities to trust (NATS_CA)."),
            click.option("--tlscert", envvar="NATS_CERT", type=file, help="Own certificate (NATS_CERT)."),
            click.option("--tlskey", envvar="NATS_KEY", type=file, help="Its key (NATS_KEY)."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _credentials(options: dict[str, Any]) -> Credentials:
    names = ("user", "password", "token", "creds", "nkey")
    tls = {f"tls_{name}": options[f"tls{name}"] or "" for name in ("ca", "cert", "key")}
    return Credentials(options["server"], **{name: options[name] or "" for name in names}, **tls)


def _run(work: Callable[[Runtime], Coroutine[Any, Any, int]]) -> int:
    """Run a command and turn what it raises into one line and an exit code."""

    async def main() -> int:
        return await work(Runtime.real())

    try:
        return asyncio.run(main())
    except (Refused, Damaged, StorageError) as error:
        return _fail(str(error))
    except BrokenPipeError:  # whoever read the output has enough (`| head`); nothing is to be flushed at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    except KeyboardInterrupt:
        return _fail("interrupted")


def _fail(reason: str) -> int:
    click.echo(f"{_PROGRAM}: {reason}", err=True)
    return 1


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--stream", "streams", multiple=True, metavar="NAME", help="Only this stream (may be repeated).")
@click.option("--no-consumers", is_flag=True, help="Leave consumers and their positions out.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@_connection
def backup(directory: Path, streams: tuple[str, ...], no_consumers: bool, quiet: bool, **options: Any) -> int:
    """Back up the streams of an account into DIRECTORY, over a connection, while they are in use.

    \b
    nimsnats backup -s nats://node1:4222 /backups/monday
    nimsnats backup --stream ORDERS /backups/orders

    Each stream's backup is one moment of it. A backup that was interrupted goes on where it stopped when the command is
    given again, and one that is complete is brought up to date: only what is new is transferred.
    """
    from nimsnats.backup.take import back_up

    async def work(runtime: Runtime) -> int:
        async with connected(_credentials(options)) as link:
            names = list(streams) or await link.names()
            if not names:
                click.echo("There are no streams.")
            failed = 0
            for name in names:
                progress: list[Progress] = []

                def told(stream: str, total: int) -> Callable[[int], None]:
                    progress.append(_progress(stream, total, runtime, quiet))  # noqa: B023 - called in this turn only
                    return progress[-1].move  # noqa: B023

                try:
                    now = format_time(runtime.time_ns() // _SECOND * _SECOND)
                    taken = await back_up(link, name, directory / _safe(name), told, now, consumers=not no_consumers)
                except (Refused, Damaged) as error:
                    failed = _fail(f"{name}: {error}")
                    if link.client.is_closed:
                        break
                    continue
                found = taken.manifest
                kept = f", {taken.kept} of them were there already" if taken.kept else ""
                progress[-1].end(
                    f"{name}: {found.messages} messages{kept}, {len(found.consumers)} consumers, up to sequence "
                    f"{found.state.get('last_seq', 0)}, {sized(sum(one.size for one in found.segments))} on disk"
                )
            return failed

    return _run(work)


def _safe(name: str) -> str:
    """A stream's name as a directory's. Raises Refused for what a server should not allow."""
    if not name or "/" in name or "\\" in name or name in (".", "..") or not name.isprintable():
        raise Refused(f"{name!r} is no name of a stream")
    return name


def _progress(what: str, total: int, runtime: Runtime, quiet: bool) -> Progress:
    return Progress(what, total, runtime.monotonic, terminal=sys.stderr.isatty(), quiet=quiet)


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--stream", "streams", multiple=True, metavar="NAME", help="Only this stream (may be repeated).")
@click.option("--as", "other", default="", metavar="NAME", help="Restore the one --stream under another name.")
@click.option("--subject", "subjects", multiple=True, metavar="SUBJECT", help="Subjects of the stream, instead of its "
              "own; with --as.")  # fmt: skip
@click.option("--replicas", type=int, metavar="N", help="Replicas, instead of as many as it had.")
@click.option("--replace", is_flag=True, help="Delete streams of the same name first.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@_connection
def restore(
    directory: Path,
    streams: tuple[str, ...],
    other: str,
    subjects: tuple[str, ...],
    replicas: int | None,
    replace: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Restore the streams that were backed up into DIRECTORY.

    Everything in the backup is checked before anything is touched, and a stream that exists is refused unless
    --replace is given. Messages come back with their sequences, times and headers, consumers with their positions.
    """
    from nimsnats.backup.put import check, exists, put_back

    if (other or subjects) and len(streams) != 1:
        return _fail("--as and --subject need exactly one --stream")

    async def work(runtime: Runtime) -> int:
        plans: list[tuple[Path, Manifest, dict[str, Any]]] = []
        for place in _places(directory, streams):
            manifest = check(place)
            config = {**manifest.config, "name": other or manifest.stream}
            if subjects:
                config["subjects"] = list(subjects)
            if replicas is not None:
                config["num_replicas"] = replicas
            plans.append((place, manifest, config))
            if not quiet:
                click.echo(f"{manifest.stream}: {manifest.messages} messages of {manifest.taken} are whole", err=True)
        async with connected(_credentials(options)) as link:
            await _make_room(link, [config["name"] for _, _, config in plans], replace, exists)
            failed = 0
            for place, manifest, config in plans:
                progress = _progress(config["name"], manifest.state.get("bytes", 0), runtime, quiet)
                try:
                    if replace and await exists(link, config["name"]):
                        await link.ask(f"STREAM.DELETE.{config['name']}")
                    info = await put_back(link, place, manifest, config, progress.move)
                except (Refused, Damaged) as error:
                    failed = _fail(f"{config['name']}: {error}")
                    if link.client.is_closed:
                        break
                    continue
                progress.end(_restored(manifest, info))
            return failed

    return _run(work)


def _restored(manifest: Manifest, info: dict[str, Any]) -> str:
    """What a restored stream holds, in a line; limits, and servers of other kinds, may have left some out."""
    state = info["state"]
    fewer = f" of the {manifest.messages} in the backup" if state["messages"] < manifest.messages else ""
    return (
        f"{info['config']['name']}: {state['messages']} messages{fewer}, sequences {state['first_seq']} to "
        f"{state['last_seq']}, {state['consumer_count']} consumers"
    )


async def _make_room(link: Link, names: Sequence[str], replace: bool, exists: Callable[..., Any]) -> None:
    """Refuse to restore over streams that are there, before the first is touched. Raises Refused."""
    taken = [name for name in names if await exists(link, name)]
    if taken and not replace:
        raise Refused(f"stream {', '.join(taken)} exists already: --replace deletes it first, --as gives another name")


def _places(directory: Path, streams: Sequence[str]) -> list[Path]:
    """The directories of the streams' backups. Raises Refused."""
    if (directory / MANIFEST).exists() and not streams:
        return [directory]
    found = sorted(path.parent for path in directory.glob(f"*/{MANIFEST}"))
    if streams:
        found = [directory / _safe(name) for name in streams]
        for path in found:
            if not (path / MANIFEST).exists():
                raise Refused(f"{path} holds no complete backup")
    unfinished = {path.parent for path in directory.glob("*/messages-*.nims")} - set(found)
    if unfinished and not streams:
        names = ", ".join(sorted(path.name for path in unfinished))
        raise Refused(f"the backup of {names} is not complete: finish it, or name the others with --stream")
    if not found:
        raise Refused(f"{directory} holds no backup")
    return found


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-q", "--quiet", is_flag=True, help="Only what is wrong.")
def verify(directory: Path, quiet: bool) -> int:
    """Check a node's data directory, or a backup, without changing it.

    A data directory in use is refused: stop its node first. Checked are all checksums, the Raft logs, the density of
    the sequences and the positions of the consumers.
    """
    data = _data(directory)
    if data is not None:
        return _run(lambda runtime: _verify_data(data, runtime, quiet))

    async def work(runtime: Runtime) -> int:
        from nimsnats.backup.put import check

        failed = 0
        for place in _places(directory, ()):
            try:
                found = check(place)
            except Damaged as error:
                failed = _fail(str(error))
            else:
                if not quiet:
                    click.echo(f"{found.stream}: {found.messages} messages of {found.taken}, whole")
        return failed

    return _run(work)


def _data(directory: Path) -> Path | None:
    """The data directory that is meant, also by the `store_dir` around it; None when it is none."""
    from nimsnats.storage.directory import DATABASE

    return next((path for path in (directory, directory / "jetstream") if (path / DATABASE).exists()), None)


async def _verify_data(directory: Path, runtime: Runtime, quiet: bool) -> int:
    from nimsnats.backup.datadir import verify as look

    report = await look(directory, runtime)
    if not quiet:
        for line in report.contents:
            click.echo(line)
    for line in report.problems:
        _fail(line)
    if not report.problems and not quiet:
        click.echo("No damage found.")
    return 1 if report.problems else 0


@click.command()
@click.option("--data", "directory", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
              metavar="DIR", help="The data directory of the stopped node.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do it. Without this, say what there is and what would be lost.")
def recover(directory: Path, yes: bool) -> int:
    """Make a stopped node the only member of all that it holds, because the others never come back.

    \b
    nimsnats recover --data /var/lib/nimsforest/jetstream          says what is there, and what may be lost
    nimsnats recover --data /var/lib/nimsforest/jetstream --yes    does it

    This is the last resort when so many nodes are lost for good that the rest waits for ever. Whatever the others have
    acknowledged without this node is lost. A lost node that comes back with its data is refused until its data
    directory is emptied.
    """
    from nimsnats.backup.recover import make_alone, survey

    path = _data(directory)
    if path is None:
        return _fail(f"{directory} is no data directory: there is no database in it")

    async def work(runtime: Runtime) -> int:
        found = await survey(path, runtime)
        for line in describe(found, path):
            click.echo(line)
        for line in found.problems:
            _fail(line)
        if not found.needed:
            return 0
        if not yes:
            click.echo(f"\nNothing was changed. To go on: nimsnats recover --data {directory} --yes")
            return 0
        if path.stat().st_uid != os.geteuid():
            return _fail(
                f"{path} belongs to user {_owner(path)}: run this as that user, or its node cannot write there"
            )
        member = await make_alone(path, runtime, logging.getLogger("nimsnats.recover"))
        click.echo(f"\nDone: {found.identity.node} is the only member of all that it holds, as {member}. Start it.")
        return 0

    return _run(work)


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return str(path.stat().st_uid)


def describe(found: Survey, path: Path) -> Generator[str]:
    """What a survey has found and what recovering would mean, for people."""
    identity = found.identity
    yield f"{path} is of node {identity.node}, instance {identity.instance}."
    yield from found.groups
    yield from found.absent
    if not found.needed:
        yield "Nothing is to be recovered: no other node is needed for what is here. Start the node."
        return
    others = ", ".join(sorted(found.missing))
    yield ""
    yield f"Shared with {others}. As long as a majority can still be started, start it instead: nothing is lost then."
    yield "Of several survivors recover the one with the highest terms and entries, and empty the others' directories."
    if found.absent:
        yield "Streams that are not here are lost, and forgotten: their names are free again."
    if found.pairs:
        yield "What may be lost: what the other one acknowledged alone, if it went on without this node. Whatever both"
        yield "acknowledged together is here."
    else:
        yield "What will be lost: whatever the others acknowledged without this node, while it was behind or stopped."
        yield "The sequences of such messages are given out again, to other messages."
    yield f"Whoever of {others} comes back with its data is refused, and both sides say so, until its data directory"
    yield "is emptied: then it joins, and is fed."


@click.command()
@click.option("--stream", "streams", multiple=True, metavar="NAME", help="Only this stream (may be repeated).")
@click.option("--format", "form", type=click.Choice(["json", "csv"]), default="json", show_default=True)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of standard output."
)
@click.option("--from-backup", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="Read a backup.")  # fmt: skip
@click.option("--from-data", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="Read the data directory of a node that does not run.")  # fmt: skip
@_connection
def export(
    streams: tuple[str, ...],
    form: str,
    output: Path | None,
    from_backup: Path | None,
    from_data: Path | None,
    **options: Any,
) -> int:
    """Write the messages of streams as JSON lines or CSV: from a server, a backup, or a stopped node's data.

    \b
    nimsnats export --stream ORDERS --format csv -o orders.csv
    nimsnats export --from-data /var/lib/nimsforest/jetstream --stream ORDERS
    """
    from nimsnats.backup.export import csv_rows, json_lines

    if from_backup is not None and from_data is not None:
        return _fail("--from-backup and --from-data exclude each other")

    async def work(runtime: Runtime) -> int:
        with _output(output) as out:
            write = json_lines(out) if form == "json" else csv_rows(out)
            if from_backup is not None:
                for place in _places(from_backup, streams):
                    manifest = Manifest.read(place)
                    for message in read_messages(place, manifest):
                        write(manifest.stream, message)
            elif from_data is not None:
                from nimsnats.backup.datadir import messages

                async for name, message in messages(_data(from_data) or from_data, runtime, frozenset(streams)):
                    write(name, message)
            else:
                from nimsnats.backup.take import each_message

                async with connected(_credentials(options)) as link:
                    for name in list(streams) or await link.names():
                        async for message in each_message(link, name):
                            write(name, message)
        return 0

    return _run(work)


@contextmanager
def _output(path: Path | None) -> Generator[TextIO]:
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
    else:
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE)  # a pipe is welcome here
        with os.fdopen(made, "w", newline="") as file:
            yield file
