"""A slow link between two network namespaces: delay, rate, a queue and random loss, as `tc netem` makes them.

Many kernels of virtual machines have no netem module. So a process moves the packets between two TUN devices, one in
each namespace. Both ends are the kernel's own TCP.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MTU = 1500
CLIENT, SERVER = "pbclient", "pbserver"
SERVER_ADDRESS = "10.197.0.2"
_CLIENT_ADDRESS = "10.197.0.1"


@dataclass(frozen=True, slots=True)
class Conditions:
    """A link's properties, the same in both directions."""

    round_trip_seconds: float = 0.1
    bits_per_second: float = 50_000_000
    loss: float = 0.0
    """Share of the packets that are lost at random; packets that find the queue full are lost too."""

    @property
    def queue_bytes(self) -> float:
        """The size of the queue before the link: the bytes of one round trip, but at least those of 20 packets."""
        return max(20 * _MTU, self.round_trip_seconds * self.bits_per_second / 8)


@dataclass
class Direction:
    """Packets on their way to one device."""

    device: int
    free_at: float = 0.0
    """The time at which the link will have sent all packets in its queue."""
    under_way: deque[tuple[float, bytes]] = field(default_factory=deque)

    def take(self, packet: bytes, now: float, conditions: Conditions, chance: random.Random) -> None:
        """Queue a packet, or drop it because the queue is full or by chance. `now` is in seconds."""
        begin = max(now, self.free_at)
        waiting = (begin - now) * conditions.bits_per_second / 8
        if waiting > conditions.queue_bytes or chance.random() < conditions.loss:
            return
        self.free_at = begin + len(packet) * 8 / conditions.bits_per_second
        self.under_way.append((self.free_at + conditions.round_trip_seconds / 2, packet))

    def deliver(self, now: float) -> None:
        """Write the packets that have arrived by now to the device."""
        while self.under_way and self.under_way[0][0] <= now:
            os.write(self.device, self.under_way.popleft()[1])

    def due_seconds(self, now: float) -> float:
        """Return the time until the next packet arrives; half a second if none is under way."""
        return max(0.0, self.under_way[0][0] - now) if self.under_way else 0.5


@dataclass
class EmulatedLink:
    """The running link. A link's conditions may change between two measurements."""

    conditions: Conditions = Conditions()
    _ended: bool = False

    def move(self, client: int, server: int) -> None:
        """Move packets between both devices until the link ends."""
        chance = random.Random(7)
        ways = {client: Direction(server), server: Direction(client)}
        while not self._ended:
            now = time.perf_counter()
            wait = min(way.due_seconds(now) for way in ways.values())
            readable, _, _ = select.select(list(ways), [], [], wait)
            now = time.perf_counter()
            for device in readable:
                ways[device].take(os.read(device, _MTU + 64), now, self.conditions, chance)
            for way in ways.values():
                way.deliver(now)

    def end(self) -> None:
        """End `move`."""
        self._ended = True


@contextmanager
def slow_link() -> Iterator[EmulatedLink]:
    """Make the namespaces, and a link between them. Raises CalledProcessError if this user is not permitted to."""
    with ExitStack() as stack:
        devices = []
        for namespace, address, other in (
            (CLIENT, _CLIENT_ADDRESS, SERVER_ADDRESS),
            (SERVER, SERVER_ADDRESS, _CLIENT_ADDRESS),
        ):
            run("ip", "netns", "add", namespace)
            stack.callback(run, "ip", "netns", "del", namespace)
            device = os.open("/dev/net/tun", os.O_RDWR)
            stack.callback(os.close, device)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", namespace.encode(), _IFF_TUN | _IFF_NO_PI))
            run("ip", "link", "set", namespace, "netns", namespace)
            within(namespace, "ip", "address", "add", address, "peer", other, "dev", namespace)
            within(namespace, "ip", "link", "set", namespace, "up", "txqueuelen", "10000")
            devices.append(device)
        link = EmulatedLink()
        thread = threading.Thread(target=link.move, args=devices)
        thread.start()
        stack.callback(thread.join)
        stack.callback(link.end)
        yield link


def within(namespace: str, *command: str) -> None:
    """Run a command in a namespace."""
    run("ip", "netns", "exec", namespace, *command)


def run(*command: str) -> None:
    """Run a command. Raises CalledProcessError."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
