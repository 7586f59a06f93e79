"""Two hosts on one machine: two network namespaces of Linux, joined by a virtual cable. Needs root and iproute2."""
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from launched import Host

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
    if shutil.which("ip") is None:
        raise NoNamespacesError("there is no program ip here; on Debian and Ubuntu: apt-get install iproute2")
    remove()  # what an earlier run may have left
    try:
        for name in NAMES:
            _ip("netns", "add", name)
        _ip("link", "add", CABLE[0], "netns", NAMES[0], "type", "veth", "peer", "name", CABLE[1], "netns", NAMES[1])
        for name, end, address in zip(NAMES, CABLE, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            _ip("-n", name, "link", "set", end, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield tuple(
            # gloo would listen where the machine's name leads, which is not in the namespace.
            Host(("ip", "netns", "exec", name), dict(MASTER_ADDR=ADDRESSES[0], GLOO_SOCKET_IFNAME=end))
            for name, end in zip(NAMES, CABLE, strict=True)
        )
    finally:
        remove()


def cut_the_cable() -> None:
    """No packet passes from now on, and nobody is told: the ends stay up as of a switch between them that has died."""
    _ip("-n", NAMES[1], "link", "set", CABLE[1], "down")


def remove() -> None:
    """The two hosts, and with them their cable, if they are there."""
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise NoNamespacesError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
