"""What can happen to a cluster. Every fault ends by itself and leaves everything mended; none waits for recovery.

A fault takes the world and a source of chance, and says what it has done.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from random import Random

from tests.chaos import skewed
from tests.chaos.workload import STREAM, connect
from tests.chaos.world import REGISTRY, HostedNode, World

Fault = Callable[[World, Random], Awaitable[str]]


async def leader_of(world: World, stream: str = STREAM) -> HostedNode | None:
    """Who leads a stream, if anybody says so."""
    client = await connect(*world.urls())
    try:
        answer = json.loads((await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=2)).data)
    except Exception:
        return None
    finally:
        await client.close()
    name = answer.get("cluster", {}).get("leader")
    return next((node for node in world.members if node.name == name), None)


async def kill(world: World, chance: Random) -> str:
    """kill -9 of any node, and its return."""
    return await _kill(chance.choice(world.members), chance)


async def kill_leader(world: World, chance: Random) -> str:
    """kill -9 of the stream's leader, and its return."""
    return await _kill(await leader_of(world) or world.members[0], chance)


async def _kill(victim: HostedNode, chance: Random) -> str:
    away = chance.uniform(0, 5)
    await victim.kill()
    await asyncio.sleep(away)
    await victim.start()
    return f"kill -9 of {victim.name} for {away:.1f} s"


async def power_cut(world: World, chance: Random) -> str:
    """kill -9 of all nodes in one moment, and their return in any order."""
    await asyncio.gather(*(node.kill() for node in world.members))
    order = list(world.members)
    chance.shuffle(order)
    await asyncio.gather(*(node.start() for node in order))
    return f"kill -9 of all, back as {' '.join(node.name for node in order)}"


async def freeze(world: World, chance: Random) -> str:
    """SIGSTOP for longer than an election takes."""
    victim, duration = chance.choice(world.members), chance.uniform(2, 6)
    victim.pause()
    await asyncio.sleep(duration)
    victim.resume()
    return f"SIGSTOP of {victim.name} for {duration:.1f} s"


async def isolate(world: World, chance: Random) -> str:
    """A node that hears none of the others nor the registry, and is not heard by them; clients reach it."""
    victim, duration = chance.choice(world.members), chance.uniform(2, 8)
    others = [*(node.name for node in world.members if node is not victim), REGISTRY]
    await world.cut(*((victim.name, other) for other in others), *((other, victim.name) for other in others))
    await asyncio.sleep(duration)
    await world.heal()
    return f"{victim.name} cut off for {duration:.1f} s"


async def deafen(world: World, chance: Random) -> str:
    """A node that is heard but does not hear, or the other way round."""
    victim, duration = chance.choice(world.members), chance.uniform(2, 8)
    mute = chance.random() < 0.5
    others = [node.name for node in world.members if node is not victim]
    await world.cut(*((victim.name, other) if mute else (other, victim.name) for other in others))
    await asyncio.sleep(duration)
    await world.heal()
    return f"{victim.name} {'is not heard' if mute else 'does not hear'} for {duration:.1f} s"


async def part(world: World, chance: Random) -> str:
    """One line between two nodes is broken; the others, and the registry, see both."""
    one, other = chance.sample(world.members, 2)
    duration = chance.uniform(2, 8)
    await world.cut((one.name, other.name), (other.name, one.name))
    await asyncio.sleep(duration)
    await world.heal()
    return f"no line between {one.name} and {other.name} for {duration:.1f} s"


async def slow(world: World, chance: Random) -> str:
    """What a node sends is late, and some of it lost."""
    victim, duration = chance.choice(world.members), chance.uniform(4, 8)
    how = {"delay_ms": 50, "loss_percent": 5, "kbit": 2000}
    done = await asyncio.to_thread(world.network.slow_down, victim.name, **how)
    await asyncio.sleep(duration)
    await world.heal()
    return f"{victim.name} slow for {duration:.1f} s: {done}"


async def flap(world: World, chance: Random) -> str:
    """A line that is broken for moments: packets are lost in bursts."""
    victim, times = chance.choice(world.members), chance.randrange(10, 30)
    for _ in range(times):
        others = [node.name for node in world.members if node is not victim and chance.random() < 0.7]
        await world.cut(*((victim.name, other) for other in others))
        await asyncio.sleep(chance.uniform(0.02, 0.15))
        await world.heal()
        await asyncio.sleep(chance.uniform(0.05, 0.3))
    return f"{times} bursts of lost packets from {victim.name}"


async def wrong_clock(world: World, chance: Random) -> str:
    """The wall clock of a node jumps, back or forth, and is set right after a while."""
    victim, seconds = chance.choice(world.members), chance.choice((-86400, -3600, -30, 30, 3600, 86400))
    skewed.set_skew(victim.clock, seconds)
    await asyncio.sleep(chance.uniform(2, 5))
    skewed.set_skew(victim.clock, 0)
    return f"clock of {victim.name} wrong by {seconds} s"


async def lose_registry(world: World, chance: Random) -> str:
    """The registry dies with all that it knew, and comes back empty."""
    away = chance.uniform(0, 10)
    await world.registry.kill()
    await asyncio.sleep(away)
    await world.registry.start()
    return f"no registry for {away:.1f} s, then an empty one"


async def fill_disk(world: World, chance: Random) -> str:
    """A disk without space, where every node has a small one of its own."""
    victim, duration = chance.choice(world.members), chance.uniform(2, 5)
    if not world.disk:
        return "nothing: the nodes have no disks of their own"
    ballast = victim.data_dir / "ballast"
    await asyncio.to_thread(_fill, str(ballast))
    await asyncio.sleep(duration)
    ballast.unlink()
    return f"disk of {victim.name} full for {duration:.1f} s"


def _fill(path: str) -> None:
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            return


async def restart_all(world: World, chance: Random) -> str:
    """A rolling restart: one node after the other ends in order and comes back."""
    del chance
    for node in list(world.members):
        assert await node.terminate() == 0, f"{node.name} did not end in order"
        await node.start()
        await world.whole()
        await world.current(STREAM)
    return f"rolling restart of {len(world.members)}"


async def quiet(world: World, chance: Random) -> str:
    """Nothing happens: what pauses this machine makes by itself."""
    del world
    duration = chance.uniform(8, 10)
    await asyncio.sleep(duration)
    return f"nothing for {duration:.1f} s"


ALL: tuple[Fault, ...] = (
    kill, kill_leader, freeze, isolate, deafen, part, slow, flap, wrong_clock, lose_registry, power_cut, restart_all,
    fill_disk,
)  # fmt: skip
