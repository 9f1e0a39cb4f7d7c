"""The HTTP client against real servers on loopback that behave badly in every way."""

from __future__ import annotations

import json
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from iotops.clients.http import JsonClient
from iotops.demo.ground import free_port
from iotops.errors import Conflict, Refused, ServerError, SettingsError, Unreachable

pytestmark = pytest.mark.clients

TOKEN = "t0ken-that-must-not-be-seen"


class Word:
    """A stand-in for the settings' secret type."""

    def reveal(self) -> str:
        return TOKEN


Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Answers each path by the function registered for it, and remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[str, Answer] = {}
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.let_go = threading.Event()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def hits(self, path: str) -> int:
        return sum(1 for _, asked, _, _ in self.asked if asked.split("?")[0] == path)

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are the point of these tests: no noise."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.asked.append((self.command, self.path, dict(self.headers.items()), body))
        self.server.routes[self.path.split("?")[0]](self)

    do_GET = _any
    do_POST = _any

    def log_message(self, *_: object) -> None:
        """Quiet."""


def say(status: int, body: bytes = b"", kind: str = "application/json", **more: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in more.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def drop(handler: BaseHTTPRequestHandler) -> None:
    """Hang up without a byte."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def cut(handler: BaseHTTPRequestHandler) -> None:
    """Announce 100 bytes, send 10, hang up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"half": 12')
    handler.wfile.flush()
    drop(handler)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.let_go.set()
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def client(server: Server) -> Iterator[JsonClient]:
    with JsonClient(server.base, name="Node-RED", token=Word(), timeout=(2, 1.0)) as made:
        yield made


def test_json_is_read_and_the_token_travels_in_the_header_only(
    server: Server, client: JsonClient
) -> None:
    server.routes["/flows"] = say(200, '{"rev": "é"}'.encode())
    assert client.get_json("/flows", params={"a": "b c"}, headers={"X-Y": "z"}) == {"rev": "é"}
    method, path, headers, _ = server.asked[0]
    assert (method, path) == ("GET", "/flows?a=b+c")
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert headers["X-Y"] == "z"


def test_bytes_come_back_untouched_with_status_and_lower_case_headers(
    server: Server, client: JsonClient
) -> None:
    server.routes["/raw"] = say(200, b"\x00\xff", "application/octet-stream", X_Build="OSS")
    answer = client.get("/raw")
    assert (answer.status, answer.body, answer.headers["x-build"]) == (200, b"\x00\xff", "OSS")


def test_json_and_forms_are_posted_and_an_empty_answer_is_none(
    server: Server, client: JsonClient
) -> None:
    server.routes["/a"] = say(200, b'{"ok": true}')
    server.routes["/b"] = say(204)
    assert client.post_json("/a", {"x": [1, "ü"]}) == {"ok": True}
    assert client.post_form("/b", {"user": "a&b", "scope": ""}) is None
    assert json.loads(server.asked[0][3]) == {"x": [1, "ü"]}
    assert server.asked[1][3] == b"user=a%26b&scope="


def test_nobody_there_is_unreachable_with_a_next_step() -> None:
    client = JsonClient(f"http://127.0.0.1:{free_port()}", name="InfluxDB")
    with pytest.raises(Unreachable, match=r"InfluxDB.*nothing answers") as caught:
        client.get_json("/health")
    assert "iotops ps" in caught.value.hint


def test_a_silent_server_ends_by_the_time_limit_and_is_not_asked_again(
    server: Server, client: JsonClient
) -> None:
    server.routes["/slow"] = lambda handler: (server.let_go.wait(20), None)[1]
    with pytest.raises(Unreachable, match="no answer within 1 s"):
        client.get_json("/slow")
    assert server.hits("/slow") == 1


def test_a_body_that_falls_silent_ends_by_the_time_limit(
    server: Server, client: JsonClient
) -> None:
    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"{")
        handler.wfile.flush()
        server.let_go.wait(20)
        drop(handler)

    server.routes["/half"] = half
    with pytest.raises(Unreachable, match="no answer within"):
        client.get_json("/half")


def test_a_read_that_was_dropped_is_tried_again_a_write_never(
    server: Server, client: JsonClient
) -> None:
    server.routes["/x"] = lambda handler: (
        drop(handler) if server.hits("/x") < 3 else say(200, b"[]")(handler)
    )
    assert client.get_json("/x") == []
    assert server.hits("/x") == 3
    server.routes["/w"] = drop
    with pytest.raises(Unreachable, match="hung up"):
        client.post_json("/w", {})
    assert server.hits("/w") == 1


def test_attempts_are_bounded(server: Server, client: JsonClient) -> None:
    server.routes["/starting"] = say(503, b'{"code":"unavailable","message":"starting"}')
    with pytest.raises(ServerError, match=r"503 \(unavailable: starting\)"):
        client.get_json("/starting")
    assert server.hits("/starting") == 3


def test_a_body_cut_short_is_never_taken_for_a_whole_one(
    server: Server, client: JsonClient
) -> None:
    server.routes["/cut"] = cut
    with pytest.raises(ServerError, match=r"cut short|bytes arrived"):
        client.get("/cut")
    assert server.hits("/cut") == 3
    with client.stream("/cut") as stream, pytest.raises(ServerError, match=r"cut|arrived"):
        while stream.read(8):
            pass
    assert server.hits("/cut") == 4


def test_a_stream_comes_in_pieces_uncompressed(server: Server, client: JsonClient) -> None:
    server.routes["/big"] = say(200, bytes(range(256)) * 4, "application/octet-stream")
    with client.stream("/big", {"since": "1"}) as stream:
        assert stream.status == 200
        pieces = list(iter(lambda: stream.read(100), b""))
    assert b"".join(pieces) == bytes(range(256)) * 4
    assert max(map(len, pieces)) <= 100
    assert server.asked[0][2]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Refused), (403, Refused), (409, Conflict), (404, ServerError), (500, ServerError)],
)
def test_statuses_have_a_meaning(
    server: Server, client: JsonClient, status: int, kind: type[ServerError]
) -> None:
    server.routes["/s"] = say(status, b'{"code":"version_mismatch","message":"Error"}')
    with pytest.raises(kind) as caught:
        client.get_json("/s")
    assert type(caught.value) is kind
    assert str(status) in caught.value.message
    assert server.hits("/s") == 1
    with pytest.raises(kind):
        client.post_json("/s", None)
    assert client.get("/s", accept=(status,)).status == status


def test_a_page_of_html_is_named_instead_of_parsed(server: Server, client: JsonClient) -> None:
    page = b"<!DOCTYPE html><html><body>" + b"x" * 5000
    server.routes["/page"] = say(200, page, "text/html; charset=utf-8")
    server.routes["/bare"] = say(200, page, "application/json")
    server.routes["/missing"] = say(404, page, "text/html")
    server.routes["/junk"] = say(200, b"not json")
    server.routes["/nan"] = say(200, b"[NaN]")
    for path in ("/page", "/bare"):
        with pytest.raises(ServerError, match="an HTML page came where JSON was expected"):
            client.get_json(path)
    with pytest.raises(ServerError, match=r"answered 404 \(an HTML page\)"):
        client.get_json("/missing")
    for path in ("/junk", "/nan"):
        with pytest.raises(ServerError, match="not JSON"):
            client.get_json(path)


def test_a_redirect_is_followed_on_the_same_server_only(server: Server, client: JsonClient) -> None:
    other = Server()
    other.routes["/"] = say(200, b"{}")
    thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        server.routes["/admin"] = say(301, Location="/admin/")
        server.routes["/admin/"] = say(200, b'{"here": 1}')
        server.routes["/away"] = say(302, Location=other.base + "/")
        server.routes["/round"] = say(302, Location="/round")
        assert client.get_json("/admin") == {"here": 1}
        with pytest.raises(ServerError, match="another server"):
            client.get_json("/away")
        with pytest.raises(ServerError, match="redirected more than"):
            client.get_json("/round")
        with pytest.raises(ServerError, match="301"):
            client.post_json("/admin", {})
        assert other.asked == []
    finally:
        other.shutdown()
        other.server_close()
        thread.join()


def test_proxies_and_netrc_of_the_environment_are_not_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    server.routes["/x"] = say(200, b"1")
    assert JsonClient(server.base).get_json("/x") == 1
    assert "Authorization" not in server.asked[0][2]


def test_no_exception_shows_the_token(server: Server, client: JsonClient) -> None:
    server.routes["/echo"] = say(500, f'{{"message": "you sent {TOKEN}"}}'.encode())
    server.routes["/401"] = say(401, TOKEN.encode(), "text/plain")
    server.routes["/drop"] = drop
    for path in ("/echo", "/401", "/drop"):
        with pytest.raises(ServerError) as caught:
            client.get_json(path)
        assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("token", ["SECRETab\ncd", "SECRET\u20accd", "SECRET\r\nX: y"])
def test_a_token_that_no_header_can_carry_is_told_without_it(server: Server, token: str) -> None:
    class Odd:
        def reveal(self) -> str:
            return token

    with pytest.raises(ServerError, match="a character in our token") as caught:
        JsonClient(server.base, name="Node-RED", token=Odd()).get_json("/x")
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    assert ".env" in caught.value.hint and not server.asked


def test_addresses_that_cannot_be_are_refused() -> None:
    for base in ("ftp://x", "127.0.0.1:1880", "", "http://"):
        with pytest.raises(SettingsError, match="http://"):
            JsonClient(base)
    with pytest.raises(SettingsError, match="must not hold") as caught:
        JsonClient("http://me:hunter2@127.0.0.1")
    assert "hunter2" not in caught.value.message
