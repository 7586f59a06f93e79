"""Two hosts on one machine: two network namespaces of Linux, joined by a virtual cable. Needs root and iproute2."""
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tools.evidence.reliability.launched import Host

NAMES = ("ce-mm-host0", "ce-mm-host1")
CABLE = ("ce-mm-eth0", "ce-mm-eth1")
ADDRESSES = ("10.213.7.1", "10.213.7.2")


class NoNamespacesError(RuntimeError):
    """Why there can be no two hosts here."""


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make them, and remove them at the end; the processes of one see the network of the other alone.

    Raises:
        NoNamespacesError: for want of root or of iproute2, or the kernel refuses.
    """
    if os.geteuid() != 0:
        raise NoNamespacesError("network namespaces need root: run it with sudo")
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            raise NoNamespacesError(f"there is no program {program}; on Debian and Ubuntu: apt-get install iproute2")
    remove()  # what an earlier run may have left
    try:
        for name in NAMES:
            _run("ip", "netns", "add", name)
        peer = ("peer", "name", CABLE[1], "netns", NAMES[1])
        _run("ip", "link", "add", CABLE[0], "netns", NAMES[0], "type", "veth", *peer)
        for name, end, address in zip(NAMES, CABLE, ADDRESSES, strict=True):
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", end)
            _run("ip", "-n", name, "link", "set", end, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
        yield tuple(
            # gloo would listen where the machine's name leads, which is not in the namespace.
            Host(("ip", "netns", "exec", name), dict(MASTER_ADDR=ADDRESSES[0], GLOO_SOCKET_IFNAME=end))
            for name, end in zip(NAMES, CABLE, strict=True)
        )
    finally:
        remove()


def cut_the_cable() -> None:
    """No packet passes from now on, and nobody is told: both ends stay up, as if a switch between them had died.

    Raises:
        NoNamespacesError: the kernel refuses.
    """
    for name, end in zip(NAMES, CABLE, strict=True):
        _run("tc", "-n", name, "qdisc", "add", "dev", end, "root", "blackhole")  # drops what is sent, without an error


def remove() -> None:
    """The two hosts, and with them their cable, if they are there."""
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoNamespacesError(f"{' '.join(command)}: {done.stderr.strip()}")
