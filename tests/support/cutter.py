"""An HTTP server between a client and a real one, which cuts one kind of answer short.

Not here: what the client makes of it.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


class Cutter(ThreadingHTTPServer):
    """Forwards everything; of one path's answer only the first half.

    Args:
        port: of the real server, on this machine. path: whose answer is cut.
        politely: end the answer as if it were whole; else break the connection off.
    """

    daemon_threads = True

    def __init__(self, port: int, path: str, *, politely: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.real, self.path, self.politely = port, path, politely
        self.cut = 0

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Cutter

    def _forward(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(length) if length else None
        real = http.client.HTTPConnection("127.0.0.1", self.server.real, timeout=60)
        sent = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        real.request(self.command, self.path, body=body, headers=sent)
        answer = real.getresponse()
        data = answer.read()
        real.close()
        cut = self.path.startswith(self.server.path)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP:
                self.send_header(name, value)
        if not (cut and self.server.politely):
            self.send_header("Content-Length", str(len(data)))
        if cut:
            self.server.cut += 1
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)

    do_GET = do_POST = do_HEAD = do_DELETE = do_PATCH = _forward

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def cutter(port: int, path: str, *, politely: bool) -> Iterator[Cutter]:
    """Run one for a while."""
    server = Cutter(port, path, politely=politely)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
