"""An npm registry on this machine with packages made on the spot: no dependencies, no network.

Serves what npm asks of a registry for an install: the packument of a name, and its tarballs with
their integrity. It listens on the address that this machine has on Docker's default bridge, which
containers of every network reach and nobody outside. Test code only.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from urllib.parse import unquote


def tarball(name: str, version: str, files: Mapping[str, str], **manifest: object) -> bytes:
    """Make an npm package: gzip tar of `package/...` with its `package.json`."""
    contents = {"package.json": json.dumps({"name": name, "version": version, **manifest})}
    contents.update(files)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, text in sorted(contents.items()):
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size, entry.mode = len(text.encode()), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def bridge_address() -> str:
    """This machine's address on Docker's default bridge.

    An engine that finds the bridge of an earlier one may leave its gateway unsaid: it is then the
    first address of the network.
    """
    form = "{{json (index .IPAM.Config 0)}}"
    command = ["docker", "network", "inspect", "bridge", "--format", form]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told: dict[str, str] = json.loads(done.stdout)
    return told.get("Gateway") or str(ip_network(told["Subnet"])[1])


class Registry(ThreadingHTTPServer):
    """Serve packages until `stop`; `asked` holds the paths that were asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((bridge_address(), 0), _Handler)
        self.packages: dict[str, dict[str, tuple[bytes, Mapping[str, object]]]] = {}
        self.asked: list[str] = []
        self.down = False
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The registry's address."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def add(self, name: str, version: str, files: Mapping[str, str], **manifest: object) -> None:
        """Publish a version of a package."""
        made = tarball(name, version, files, **manifest)
        self.packages.setdefault(name, {})[version] = (made, manifest)

    def stop(self) -> None:
        """End the server."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def packument(self, name: str) -> dict[str, object]:
        """What npm reads about a package."""
        versions: dict[str, object] = {}
        for version, (made, manifest) in self.packages[name].items():
            digest = base64.b64encode(hashlib.sha512(made).digest()).decode()
            versions[version] = {
                "name": name,
                "version": version,
                **manifest,
                "dist": {
                    "tarball": f"{self.url}/{name}/-/{version}.tgz",
                    "integrity": f"sha512-{digest}",
                    "shasum": hashlib.sha1(made).hexdigest(),
                },
            }
        return {"name": name, "dist-tags": {"latest": max(versions)}, "versions": versions}


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name, _, rest = unquote(self.path.lstrip("/")).partition("/-/")
        found = self.server.packages.get(name)
        version = rest.removesuffix(".tgz")
        if self.server.down:
            self._say(503, b"{}")
        elif found is None or (rest and version not in found):
            self._say(404, b'{"error": "not_found"}')
        elif rest:
            self._say(200, found[version][0], "application/octet-stream")
        else:
            self._say(200, json.dumps(self.server.packument(name)).encode())

    def _say(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""
