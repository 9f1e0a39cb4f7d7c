"""A second machine beside the first: nothing is shared with it but the programs and one repository.

A process of its own namespaces (mounts, network, host name, processes) is a Docker daemon with an
empty data root. The first machine's folders are covered there, and what is made in their places is
the second machine's. All of it ends with that one process. Not here: any assertion about the
product.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.hubs import HubUnderTest

NAME = "second-machine"
ENGINE = ("/var/lib/docker", "/run/docker", "/var/lib/iotops", "/etc/iotops", "/run/iotops")
"""What the first machine has outside of its hub's base; covered where it is there."""
ENGINES_OWN = frozenset({"plugins"})
"""What a starting engine makes in `/run/docker`, whatever its folders are."""
DISK_SIZE = 900 << 20
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET, sched.h

START = """
set -e
hostname {name}
ip link set lo up
keep={base}/repository
mkdir $keep
mount --bind {repository} $keep
for each in {covered}; do
    test ! -d $each || mount -t tmpfs -o mode=755 second $each
done
test ! -e /run/docker.sock || mount --bind /dev/null /run/docker.sock
test ! -e /etc/machine-id || mount --bind {base}/machine-id /etc/machine-id
mkdir -p {repository} {root}
mount --bind $keep {repository}
mkfs.ext4 -q -F -E lazy_itable_init=1 {base}/disk.ext4
mount -o loop {base}/disk.ext4 {root}
exec dockerd --data-root {base}/docker --exec-root {base}/exec --pidfile {base}/pid \\
    -H unix://{base}/socket --cgroup-parent {cgroup} --iptables=false > {base}/log 2>&1
"""


class HubThere(HubUnderTest):
    """The first hub's twin on the second machine: same paths and ports, seen from here.

    Args:
        first: whose folders it has, in the second machine's own mounts.
        machine: where it is.

    Attributes:
        folder: the hub folder, as this process reaches it.
    """

    def __init__(self, first: HubUnderTest, machine: SecondMachine) -> None:
        self.machine = machine
        self.base, self.ports, self.project = first.base, first.ports, first.project
        self.inside = first.folder
        self.folder, self.root = machine.path(first.folder), machine.path(first.root)

    def _argv(self, argv: tuple[str, ...], hub: bool) -> list[str]:
        own = super()._argv(argv, False)
        return self.machine.argv([*own, *(["--hub", str(self.inside)] if hub else [])])

    def _env(self, env: Mapping[str, str] | None) -> dict[str, str]:
        return {**super()._env(env), "DOCKER_HOST": self.machine.engine}


class SecondMachine:
    """The machine described above; `remove` ends it, also one that was never whole.

    Args:
        first: the hub whose folders and engine it must not see, but for the repository.
    """

    def __init__(self, first: HubUnderTest) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="iotops-second-", dir="/var/tmp"))
        self.engine = f"unix://{self.base / 'socket'}"
        self._cgroup = self.base.name
        self._first = first
        self._outer: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def start(self) -> None:
        """Start it, and wait until its engine answers."""
        (self.base / "machine-id").write_text("5ec0" * 8 + "\n")
        with (self.base / "disk.ext4").open("wb") as file:
            file.truncate(DISK_SIZE)
        script = START.format(
            name=NAME,
            base=self.base,
            repository=self._first.repository,
            root=self._first.root,
            covered=shlex.join((str(self._first.base), *ENGINE)),
            cgroup=self._cgroup,
        )
        own = ("--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc")
        with (self.base / "start").open("wb") as said:
            self._outer = subprocess.Popen(
                ["unshare", *own, "--kill-child=KILL", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd="/",
            )
        until = time.monotonic() + 60
        while not self._answers():
            told = (self.base / "start").read_text()
            assert self._outer.poll() is None, f"the second machine ended: {told}"
            assert time.monotonic() < until, f"its engine does not answer: {told}"
            time.sleep(0.1)
        outer = self._outer.pid
        (child,) = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        self._pid = int(child)

    def _answers(self) -> bool:
        argv = ["docker", "-H", self.engine, "version"]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    def docker(self, *argv: str) -> str:
        """Run the docker program on its engine and give the output."""
        done = subprocess.run(
            ["docker", "-H", self.engine, *argv], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"docker {argv}: {done.stderr}"
        return done.stdout

    def load(self, images: Sequence[str]) -> None:
        """Carry images over from the first engine, as a file would."""
        with subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE) as saved:
            argv = ["docker", "-H", self.engine, "load", "--quiet"]
            loaded = subprocess.run(argv, stdin=saved.stdout, capture_output=True, check=False)
            assert saved.stdout is not None
            saved.stdout.close()
        assert saved.returncode == 0 and loaded.returncode == 0, loaded.stderr

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Give the command that runs another one there."""
        return ["nsenter", "-t", str(self._pid), "-m", "-n", "-u", "-p", "--", *argv]

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program there."""
        return subprocess.run(self.argv(argv), capture_output=True, text=True, check=False)

    def path(self, path: Path) -> Path:
        """Give the path by which this process reaches one of there."""
        return Path(f"/proc/{self._pid}/root") / path.relative_to("/")

    @contextmanager
    def network(self) -> Iterator[None]:
        """Have this thread, and the programs that it starts, in the machine's network."""
        libc = ctypes.CDLL(None, use_errno=True)
        own, its = Path("/proc/thread-self/ns/net"), Path(f"/proc/{self._pid}/ns/net")
        with own.open() as here, its.open() as there:
            assert libc.setns(there.fileno(), _NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(here.fileno(), _NEW_NETWORK) == 0

    def remove(self) -> None:
        """End its containers, its engine and itself; then its files go."""
        if self._outer is not None:
            if self._pid and self._outer.poll() is None:
                with suppress(AssertionError):  # whatever the engine says, all ends below
                    for name in self.docker("ps", "-aq").split():
                        self.docker("rm", "-f", "-v", name)
                with suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    self._outer.wait(timeout=20)
            self._outer.kill()  # and with it, by the kernel, every process in it
            self._outer.wait(timeout=30)
        for place in (*Path("/sys/fs/cgroup").glob(f"*/{self._cgroup}"), self._unified()):
            for folder in (*sorted(place.rglob("*/"), reverse=True), place):
                with suppress(OSError):
                    folder.rmdir()
        shutil.rmtree(self.base, ignore_errors=True)

    def _unified(self) -> Path:
        return Path("/sys/fs/cgroup") / self._cgroup
