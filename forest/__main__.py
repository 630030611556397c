"""`python -m forest`: a forest on a NATS server that runs elsewhere, until SIGINT or SIGTERM.

Owns: the command line. Webhooks are served when `--listen` is given; the secret of webhook NAME is read from
the environment variable `FOREST_WEBHOOK_<NAME>` (several, separated by commas, while one is being rotated).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from forest.app import Forest
from forest.errors import ForestError
from forest.options import ForestOptions

_SECRETS = "FOREST_WEBHOOK_"
_log = logging.getLogger("forest")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    commands = argparse.ArgumentParser(prog="python -m forest", description="Run a forest on any NATS server.")
    commands.add_argument("--nats-url", default="nats://127.0.0.1:4222", help="server (default: %(default)s)")
    commands.add_argument("--tree", action="append", default=[], metavar="PACKAGE.MODULE:CLASS", help="own tree")
    commands.add_argument("--nim", action="append", default=[], metavar="PACKAGE.MODULE:CLASS", help="own nim")
    commands.add_argument("--replicas", type=int, default=1, help="copies of each stream (default: %(default)s)")
    commands.add_argument("--demo", action="store_true", help="feed sample payments")
    commands.add_argument("--listen", metavar="HOST:PORT", help="serve POST /webhooks/<name> here")
    return commands


def secrets_from(environment: Mapping[str, str]) -> dict[str, list[str]]:
    """Webhook name -> secrets. `FOREST_WEBHOOK_STRIPE=whsec_new,whsec_old` is webhook `stripe`."""
    return {
        key.removeprefix(_SECRETS).lower(): [part.strip() for part in value.split(",") if part.strip()]
        for key, value in environment.items()
        if key.startswith(_SECRETS) and value.strip()
    }


async def _serve(forest: Forest, listen: str) -> Callable[[], Awaitable[None]]:
    """Serve webhooks at `listen` (host:port); returns what ends it."""
    from aiohttp import web  # only those who listen need it

    from forest.webhook import endpoints, webhook_handler

    table = endpoints(secrets_from(os.environ))
    application = web.Application()
    handler = webhook_handler(forest.river, table, clock=time.time, metrics=forest.metrics, log=_log)
    application.router.add_post("/webhooks/{name}", handler)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    await web.TCPSite(runner, host.strip("[]") or "127.0.0.1", int(port)).start()
    _log.info("webhooks on %s: %s", listen, ", ".join(sorted(table)) or f"none, set {_SECRETS}<NAME>")
    return runner.cleanup


async def run(arguments: argparse.Namespace) -> int:
    """Run until a signal; the process's exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    options = ForestOptions(trees=arguments.tree, nims=arguments.nim, replicas=arguments.replicas, demo=arguments.demo)
    try:
        async with Forest(arguments.nats_url, options) as forest:
            end = await _serve(forest, arguments.listen) if arguments.listen else None
            _log.info("forest is ready on %s", arguments.nats_url)
            try:
                await stop.wait()
            finally:
                if end is not None:
                    await end()
    except (ForestError, OSError, ValueError) as error:
        print(f"forest: {error}", file=sys.stderr)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    return asyncio.run(run(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
