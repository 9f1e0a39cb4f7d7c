"""Servers on this machine: places that copies of a repository go to (SFTP, REST, S3), and one that
images come from.

Each is a child of the test with a folder and a port of its own; none reads or writes anything of
the user's. Not here: getting the programs (`tests/lab/programs.py`), and any assertion.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.request import Request, urlopen

from iotops.demo.ground import free_port
from tests.support.lab import lab


class Server:
    """A program that listens on a port of 127.0.0.1.

    Args:
        base: its folder, made here.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        base.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._child: subprocess.Popen[bytes] | None = None

    def _command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        raise NotImplementedError

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        argv, more = self._command()
        with (self.base / "log").open("ab") as log:
            self._child = subprocess.Popen(
                argv, env={**os.environ, **more}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until = time.monotonic() + 60
        while not self._answers():
            said = (self.base / "log").read_text()
            assert self._child.poll() is None, f"{argv[0]} ended: {said}"
            assert time.monotonic() < until, f"{argv[0]} does not listen: {said}"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it, by its own process."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(timeout=30)
            self._child = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False


class Sftp(Server):
    """OpenSSH's server, with a host key and a login key of its own.

    It needs an account for its unprivileged part, which this machine need not have: it runs in a
    mount namespace with a user list of its own.
    """

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.store = base / "store"
        self.store.mkdir()
        for name in ("host", "login"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", base / name], check=True
            )
        key = " ".join((base / "host.pub").read_text().split()[:2])
        (base / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}\n")
        account = "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"
        (base / "passwd").write_text(Path("/etc/passwd").read_text() + account)
        (base / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {base}/host\nPidFile none\n"
            f"AuthorizedKeysFile {base}/login.pub\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "Subsystem sftp internal-sftp\n"
        )
        self.ssh_config = base / "ssh_config"
        self.ssh_config.write_text(
            f"Host nas\n  HostName 127.0.0.1\n  Port {self.port}\n  User root\n"
            f"  IdentityFile {base}/login\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {base}/known_hosts\n"
        )

    def _command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        inside = (
            'mount --bind "$0/passwd" /etc/passwd && mount -t tmpfs tmpfs /run'
            ' && mkdir -m 755 /run/sshd && exec "$1" -D -e -f "$0/sshd_config"'
        )
        program = lab().programs["sshd"]
        return ["unshare", "--mount", "sh", "-c", inside, self.base, program], {}


class Rest(Server):
    """rclone as an append-only REST server, one folder for each user."""

    user, password = "iot", "nobody-knows-this"

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.store = base / "store"
        self.store.mkdir()
        self.credentials = base / "credentials"
        self.credentials.write_text(
            f"RESTIC_REST_USERNAME={self.user}\nRESTIC_REST_PASSWORD={self.password}\n"
        )
        self.credentials.chmod(0o600)

    @property
    def url(self) -> str:
        """Give the address of this user's part."""
        return f"rest:http://127.0.0.1:{self.port}/{self.user}/hub/"

    def _command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        argv: list[str | Path] = [
            lab().programs["rclone"],
            *("serve", "restic", "--addr", f"127.0.0.1:{self.port}"),
            *("--append-only", "--private-repos", "--config", "/dev/null", self.store),
        ]
        return argv, {"RCLONE_USER": self.user, "RCLONE_PASS": self.password}


class S3(Server):
    """moto's S3, which keeps everything in memory."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.credentials = base / "credentials"
        self.credentials.write_text(
            "AWS_ACCESS_KEY_ID=AKIDEXAMPLE\nAWS_SECRET_ACCESS_KEY=nobody-knows-this-either\n"
        )
        self.credentials.chmod(0o600)

    @property
    def url(self) -> str:
        """Give the address of a bucket; restic makes it."""
        return f"s3:http://127.0.0.1:{self.port}/hub-copies"

    def _command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        program = lab().programs["moto_server"]
        return [program, "-H", "127.0.0.1", "-p", str(self.port)], {}


_BYTES = "application/octet-stream"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"


class Registry(Server):
    """Debian's image registry. An engine trusts one at 127.0.0.1 without a certificate."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        (base / "config.yml").write_text(
            "version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {base}/store}}, delete: {{enabled: true}}}}\n"
            f'http: {{addr: "127.0.0.1:{self.port}"}}\n'
        )

    def name(self, image: str) -> str:
        """Give the name of an image of it."""
        return f"127.0.0.1:{self.port}/{image}"

    def take(self, image: str, label: str) -> str:
        """Push an image that is here, with a label of its own, and remove it here.

        Args:
            image: a name that the engine knows. label: its name and tag in the registry.

        Returns:
            Its digest there.
        """
        name = self.name(label)
        _docker("build", "--tag", name, "-", stdin=f"FROM {image}\nLABEL iotops.test={name}\n")
        _docker("push", name)
        form = "{{index .RepoDigests 0}}"
        digest = _docker("image", "inspect", "--format", form, name).strip().partition("@")[2]
        _docker("image", "rm", name)
        return digest

    def put(self, label: str, *platforms: str) -> None:
        """Make an image without content; of several platforms, or of one: "linux/s390x"."""
        image, _, tag = label.partition(":")
        if len(platforms) == 1:
            self._manifest(image, tag, platforms[0])
            return
        entries = []
        for number, platform in enumerate(platforms):
            size, digest = self._manifest(image, f"{tag}-{number}", platform)
            system, architecture, *_ = platform.split("/")
            about = {"os": system, "architecture": architecture}
            entries.append({**_descriptor(_MANIFEST, size, digest), "platform": about})
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries}
        self._ask("PUT", f"/v2/{image}/manifests/{tag}", json.dumps(index).encode(), _INDEX)

    def forget(self) -> None:
        """Remove what this machine's engine has of it."""
        mine = ("image", "ls", "--quiet", "--no-trunc", "--filter", f"reference={self.name('*')}")
        for image in dict.fromkeys(_docker(*mine).split()):
            _docker("image", "rm", "--force", image)

    def _manifest(self, image: str, tag: str, platform: str) -> tuple[int, str]:
        """Push one manifest with an empty layer; gives its size and digest."""
        layer = bytes(10240)  # the end of an archive, and nothing before it
        system, architecture, *_ = platform.split("/")
        config = {
            "os": system,
            "architecture": architecture,
            "config": {"Cmd": ["none"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
        kinds = (
            ("application/vnd.docker.container.image.v1+json", json.dumps(config).encode()),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip.compress(layer, mtime=0)),
        )
        parts = []
        for kind, data in kinds:
            where = self._ask("POST", f"/v2/{image}/blobs/uploads/")
            self._ask("PUT", f"{where}&digest={_digest(data)}", data)
            parts.append(_descriptor(kind, len(data), _digest(data)))
        manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": parts[0]}
        data = json.dumps({**manifest, "layers": parts[1:]}).encode()
        self._ask("PUT", f"/v2/{image}/manifests/{tag}", data, _MANIFEST)
        return len(data), _digest(data)

    def _ask(self, method: str, where: str, data: bytes = b"", kind: str = _BYTES) -> str:
        """Ask its HTTP API; gives the address that it answers with."""
        address = where if "://" in where else f"http://127.0.0.1:{self.port}{where}"
        asked = Request(address, data, {"Content-Type": kind}, method=method)
        with urlopen(asked, timeout=60) as answer:
            return str(answer.headers["Location"])

    def _command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        return [lab().programs["docker-registry"], "serve", self.base / "config.yml"], {}


def _docker(*argv: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        ["docker", *argv],
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"docker {argv}: {done.stderr}"
    return done.stdout


def _descriptor(kind: str, size: int, digest: str) -> dict[str, object]:
    return {"mediaType": kind, "size": size, "digest": digest}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Silent:
    """A port that accepts connections and never says a word."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.port = int(self._socket.getsockname()[1])

    def stop(self) -> None:
        """Close it."""
        self._socket.close()
