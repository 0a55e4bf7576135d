"""Groups of processes on this machine that train together, and two machines made of network namespaces."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from soak.children import Child, Ended, start

__all__ = ["Group", "Node", "free_port", "launch", "nodes", "torchrun"]


def free_port() -> str:
    """A port below those that the system gives to connections: one of those could be taken before its server starts.

    A client that tries such a port while no server listens may get it as its own port, and then connects to itself.
    """
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return str(port)
    raise OSError("no free port among 100 of 20000 to 30000")


@dataclass(frozen=True)
class Group:
    """Processes that work on one job.

    Attributes:
        children: One for each rank.
    """

    children: list[Child]

    def wait(self) -> list[Ended]:
        """How each of them ended, by rank."""
        return [child.wait() for child in self.children]


def launch(job: Callable[[], object], count: int, log: Path) -> Group:
    """Run a job in a group of forks, as torchrun would start them; one process alone is no group.

    Nothing but the processes themselves ends the others when one of them fails.

    Args:
        job: What each process runs.
        count: Number of processes.
        log: Beginning of the names of the files with what each of them says.
    """
    port = free_port()

    def of_rank(rank: int) -> Callable[[], object]:
        def run() -> object:
            os.environ["OMP_NUM_THREADS"] = "1"  # accelerate warns if it is left to it
            if count > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(count)}
            return job()

        return run

    log.parent.mkdir(parents=True, exist_ok=True)
    return Group([start(of_rank(rank), log.with_name(f"{log.name}-{rank}.log")) for rank in range(count)])


# Machines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A machine: a network namespace with one network card.

    Attributes:
        name: Of the namespace.
        card: Of the network card.
        address: Its address.
    """

    name: str
    card: str
    address: str

    def start(self, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """torchrun with these arguments on this machine; its workers belong to its group of processes."""
        command = ["ip", "netns", "exec", self.name, *torchrun(arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.card}
        with log.open("wb") as file:
            return subprocess.Popen(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def workers(self) -> list[int]:
        """Process ids of the workers that run on it."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [pid for pid in map(int, listed.stdout.split()) if b"LOCAL_RANK=" in _environment(pid)]


def torchrun(arguments: Sequence[str]) -> list[str]:
    """The command line of torchrun."""
    return [sys.executable, "-m", "torch.distributed.run", *arguments]


def _environment(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


@contextlib.contextmanager
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two machines that are joined by a cable.

    Raises:
        OSError: If this machine does not allow network namespaces.
    """
    if shutil.which("ip") is None:
        raise OSError("the program ip is not installed")
    tag = f"{os.getpid() % 10_000:04}"
    pair = tuple(Node(f"mumoe-{tag}-{n}", f"mu{tag}{n}", f"10.77.0.{n + 1}") for n in range(2))
    try:
        for node in pair:
            _ip("netns", "add", node.name)
        first, second = pair
        _ip("link", "add", first.card, "netns", first.name, "type", "veth", "peer", second.card, "netns", second.name)
        for node in pair:
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.card)
            _ip("-n", node.name, "link", "set", "lo", "up")
            _ip("-n", node.name, "link", "set", node.card, "up")
        yield first, second
    finally:
        for node in pair:
            with contextlib.suppress(OSError):
                _ip("netns", "del", node.name)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def end(process: subprocess.Popen[bytes], seconds: float) -> tuple[int | None, float]:
    """Wait for a process to end, then end all of its group; returns its status (None: it did not end) and the time."""
    begun = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    taken, status = time.monotonic() - begun, process.poll()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return status, taken
