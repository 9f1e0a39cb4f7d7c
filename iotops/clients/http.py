"""The only door to HTTP: a small client for one server, with errors by meaning.

A token is sent in the header and nowhere else: not in an address, a message or a redirect. Nothing
is taken from the environment (proxies, `.netrc`): the servers are the hub's own. Only reads are
tried again, a few times. Not here: what a route or a body means (the service kinds know).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit

from iotops.errors import Conflict, Refused, ServerError, SettingsError, Unreachable

if TYPE_CHECKING:
    import requests

PAUSES = (0.2, 0.6)
"""Seconds before the second and the third attempt of a read."""

BUSY = frozenset({502, 503, 504})
"""Statuses of a server that is still starting: worth another attempt of a read."""

REDIRECTS = 3
SAID = 300
"""Characters of a server's own error text that are repeated in a message."""

T = TypeVar("T")
Params = Mapping[str, str]


class Revealing(Protocol):
    """A secret that shows its value only on request."""

    def reveal(self) -> str: ...


@dataclass(frozen=True)
class Response:
    """A whole answer: status, headers (names in lower case) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Stream:
    """An answer that is read piece by piece; only valid inside `JsonClient.stream`."""

    def __init__(self, client: JsonClient, answer: requests.Response, what: str) -> None:
        self.status = answer.status_code
        self.headers = _lower(answer)
        self._client = client
        self._answer = answer
        self._what = what
        self._got = 0
        length = self.headers.get("content-length", "")
        plain = self.headers.get("content-encoding", "identity") == "identity"
        self._length = int(length) if length.isdigit() and plain else None

    def read(self, size: int) -> bytes:
        """Give the next bytes of the body.

        Args:
            size: at most so many bytes; at least 1.

        Returns:
            Up to `size` bytes; empty at the end of a body that arrived whole.

        Raises:
            ServerError: the body ended before its announced length, or the connection broke.
        """
        with self._client._meaning(self._what):
            data: bytes = self._answer.raw.read(size, decode_content=True)
        self._got += len(data)
        if not data and self._length is not None and self._got < self._length:
            raise ServerError(f"{self._what}: only {self._got} of {self._length} bytes arrived")
        return data


class JsonClient:
    """Talk to one server.

    Args:
        base: its address with an optional path, `http://127.0.0.1:1880/admin`.
        name: what the server is called in messages.
        headers: sent with every request.
        timeout: seconds to connect, and seconds of silence while reading.
        token: sent as `Authorization: <scheme> <token>`; None = no such header.
        scheme: "Bearer", or "Token" for InfluxDB.
        tries: attempts of a read; 1 for a probe that must be quick.
        ca_file: certificates to trust instead of the usual ones.

    Raises:
        SettingsError: the address is not one of http or https, or holds a password.
    """

    def __init__(
        self,
        base: str,
        *,
        name: str = "the server",
        headers: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = (5.0, 60.0),
        token: Revealing | None = None,
        scheme: str = "Bearer",
        tries: int = 1 + len(PAUSES),
        ca_file: Path | None = None,
    ) -> None:
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(f"the address of {name} must start with http:// or https://")
        if parts.username or parts.password:
            raise SettingsError(f"the address of {name} must not hold a user or a password")
        self.base = base.rstrip("/")
        self.name = name
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._token = token
        self._scheme = scheme
        self._tries = max(1, tries)
        self._ca_file = ca_file
        self._session: requests.Session | None = None

    def __enter__(self) -> JsonClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are kept open."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def get(
        self,
        path: str,
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        accept: Collection[int] = (),
    ) -> Response:
        """Read a whole body.

        Args:
            path: below the base address, starting with a slash.
            params: the query; never a secret.
            headers: further headers.
            accept: statuses beside 2xx that are returned instead of raised.

        Raises:
            Unreachable: nothing answers, or it hung up or fell silent.
            Refused: 401 or 403.
            Conflict: 409.
            ServerError: any other status, a body cut short, a redirect to another server.
        """
        return self._whole("GET", path, params=params, headers=headers, accept=accept)

    def get_json(
        self,
        path: str,
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> object:
        """Read a JSON document; see `get` for arguments and errors.

        Raises:
            ServerError: also when the body is not JSON; a page of HTML is named as such.
        """
        merged = {"Accept": "application/json", **(headers or {})}
        answer = self.get(path, params=params, headers=merged)
        return self.document(answer, path)

    def document(self, answer: Response, path: str) -> object:
        """Decode the JSON body of an answer that `get` or `post` gave.

        Raises:
            ServerError: it is not JSON; a page of HTML is named as such.
        """
        what = f"the answer of {self.name} at {self.base} to {path}"
        if _is_html(answer):
            raise ServerError(
                f"{what}: an HTML page came where JSON was expected",
                hint="check the address and its path in iotops.toml",
            )
        try:
            value: object = json.loads(answer.body, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ServerError(f"{what} is not JSON") from error
        return value

    def post(
        self,
        path: str,
        body: bytes,
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        accept: Collection[int] = (),
    ) -> Response:
        """Send bytes once, never again; arguments and errors as in `get`."""
        return self._whole("POST", path, params=params, headers=headers, accept=accept, body=body)

    def post_json(
        self,
        path: str,
        body: object,
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> object | None:
        """Send a JSON document once and give the JSON answer; None for an empty answer."""
        merged = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            **(headers or {}),
        }
        answer = self.post(path, json.dumps(body).encode(), params=params, headers=merged)
        return self.document(answer, path) if answer.body.strip() else None

    def post_form(
        self, path: str, form: Mapping[str, str], *, headers: Mapping[str, str] | None = None
    ) -> object | None:
        """Send a form once and give the JSON answer; None for an empty answer."""
        from urllib.parse import urlencode

        merged = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Accept": "application/json",
            **(headers or {}),
        }
        answer = self.post(path, urlencode(form).encode(), headers=merged)
        return self.document(answer, path) if answer.body.strip() else None

    @contextmanager
    def stream(
        self,
        path: str,
        params: Params | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        accept: Collection[int] = (),
    ) -> Iterator[Stream]:
        """Read a large body piece by piece; it is asked for uncompressed.

        Only opening it is tried again, never a body that broke in the middle.
        """
        merged = {"Accept-Encoding": "identity", **(headers or {})}
        what = self._doing("GET", path)
        answer = _again(
            self._tries, lambda: self._once("GET", path, params, merged, None, accept, what)
        )
        try:
            yield Stream(self, answer, what)
        finally:
            answer.close()

    # --- how a request travels -------------------------------------------------------------

    def _whole(
        self,
        method: str,
        path: str,
        *,
        params: Params | None,
        headers: Mapping[str, str] | None,
        accept: Collection[int],
        body: bytes | None = None,
    ) -> Response:
        what = self._doing(method, path)

        def once() -> Response:
            answer = self._once(method, path, params, headers, body, accept, what)
            with answer, self._meaning(what):
                content = answer.content
            whole = Response(answer.status_code, _lower(answer), content)
            _check_length(whole, what)
            return whole

        return _again(self._tries if method == "GET" else 1, once)

    def _once(
        self,
        method: str,
        path: str,
        params: Params | None,
        headers: Mapping[str, str] | None,
        body: bytes | None,
        accept: Collection[int],
        what: str,
    ) -> requests.Response:
        """Give an open answer with a fine status; redirects on the same server are followed."""
        url = self.base + path
        query = dict(params or {})
        for _ in range(1 + REDIRECTS):
            with self._meaning(what):
                answer = self._opened().request(
                    method,
                    url,
                    params=query,
                    data=body,
                    headers={**self._headers, **(headers or {})},
                    timeout=self._timeout,
                    stream=True,
                    allow_redirects=False,
                )
            if not answer.is_redirect or method != "GET":
                break
            target = self._same_server(answer, what)
            answer.close()
            url, query = target, {}
        else:
            raise ServerError(f"{what}: redirected more than {REDIRECTS} times")
        if 200 <= answer.status_code < 300 or answer.status_code in accept:
            return answer
        with answer, self._meaning(what):
            content = answer.content
        self._fail(answer, content, what)

    def _opened(self) -> requests.Session:
        import requests
        from requests.auth import AuthBase

        token, scheme = self._token, self._scheme

        class Bearer(AuthBase):
            """Adds the token to each request, so that it is kept in no session header."""

            def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
                if token is not None:
                    request.headers["Authorization"] = f"{scheme} {token.reveal()}"
                return request

        if self._session is None:
            session = requests.Session()
            session.trust_env = False
            session.auth = Bearer()
            session.verify = True if self._ca_file is None else str(self._ca_file)
            self._session = session
        return self._session

    def _same_server(self, answer: requests.Response, what: str) -> str:
        from urllib.parse import urljoin

        target = urljoin(answer.url, answer.headers.get("location", ""))
        if urlsplit(target)[:2] != urlsplit(self.base)[:2]:
            host = urlsplit(target).hostname or "nowhere"
            raise ServerError(
                f"{what}: redirected to another server ({host}), which is not followed"
            )
        return target

    # --- what an answer means --------------------------------------------------------------

    def _doing(self, method: str, path: str) -> str:
        verb = "reading" if method == "GET" else "writing"
        return f"{verb} {path} of {self.name} at {self.base}"

    @contextmanager
    def _meaning(self, what: str) -> Iterator[None]:
        """Turn the library's exceptions into ours, without their texts (these hold addresses)."""
        import requests
        import urllib3

        hint = "see whether it runs: iotops ps"
        try:
            yield
        except requests.exceptions.SSLError as error:
            raise _Silent(f"{what}: its TLS certificate is not trusted", hint=hint) from error
        except requests.exceptions.ConnectTimeout as error:
            raise _Silent(f"{what}: no connection in {self._timeout[0]:g} s", hint=hint) from error
        except (requests.exceptions.ReadTimeout, urllib3.exceptions.ReadTimeoutError) as error:
            raise _Silent(f"{what}: no answer within {self._timeout[1]:g} s", hint=hint) from error
        except (
            requests.exceptions.ChunkedEncodingError,
            requests.exceptions.ContentDecodingError,
            urllib3.exceptions.HTTPError,
        ) as error:
            raise _Worth(f"{what}: the answer was cut short") from error
        except requests.exceptions.ConnectionError as error:
            if "Read timed out" in str(error):  # how a silent body reads inside `content`
                raise _Silent(
                    f"{what}: no answer within {self._timeout[1]:g} s", hint=hint
                ) from error
            how = "nothing answers" if _refused(error) else "it hung up without an answer"
            raise Unreachable(f"{what}: {how}", hint=hint) from error
        except requests.exceptions.RequestException as error:
            raise ServerError(f"{what}: {type(error).__name__}") from error
        except ValueError:  # its text quotes the header, and so the token
            raise ServerError(
                f"{what}: the request could not be written: a character in our token, most"
                " likely, that no HTTP header can carry",
                hint="look for line breaks, quotes and special letters in the token in .env",
            ) from None

    def _fail(self, answer: requests.Response, content: bytes, what: str) -> NoReturn:
        status = answer.status_code
        whole = Response(status, _lower(answer), content)
        said = self._said(whole)
        text = f"{what}: it answered {status}" + (f" ({said})" if said else "")
        if status == 401:
            hint = "check the token in .env"
            raise Refused(f"{what}: it does not accept our token (401)", hint=hint)
        if status == 403:
            hint = "check the rights of the token in .env"
            raise Refused(f"{what}: our token lacks the right (403)", hint=hint)
        if status == 409:
            raise Conflict(text)
        if status in BUSY:
            raise _Worth(text)
        raise ServerError(text)

    def _said(self, answer: Response) -> str:
        """The server's own words in one bounded line, with our token taken out."""
        if _is_html(answer):
            return "an HTML page"
        text = answer.body.decode("utf-8", "replace")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict):
            told = [document.get(key) for key in ("code", "message", "error")]
            text = ": ".join(word for word in told if isinstance(word, str) and word) or text
        if self._token is not None and self._token.reveal():
            text = text.replace(self._token.reveal(), "***")
        text = " ".join(text.split())
        return text if len(text) <= SAID else text[:SAID] + "..."


class _Worth(ServerError):
    """A failure that may pass by itself: a read is tried again."""


class _Silent(Unreachable):
    """A time-out: waiting as long again is not worth it."""


def _again(attempts: int, act: Callable[[], T]) -> T:
    """Try a read until it works, has failed `attempts` times, or fails for good."""
    for pause in (*PAUSES, *[PAUSES[-1]] * attempts)[: attempts - 1]:
        try:
            return act()
        except _Silent:
            raise
        except (Unreachable, _Worth):
            time.sleep(pause)
    return act()


def _check_length(whole: Response, what: str) -> None:
    # Older urllib3 releases give a short body without a word.
    length = whole.headers.get("content-length", "")
    coded = whole.headers.get("content-encoding", "identity") != "identity"
    if length.isdigit() and not coded and len(whole.body) < int(length):
        raise _Worth(f"{what}: only {len(whole.body)} of {length} bytes arrived")


def _lower(answer: requests.Response) -> Mapping[str, str]:
    return {name.lower(): value for name, value in answer.headers.items()}


def _is_html(answer: Response) -> bool:
    kind = answer.headers.get("content-type", "").lower()
    return "text/html" in kind or answer.body.lstrip()[:15].lower().startswith(
        (b"<!doctype", b"<html")
    )


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _refused(error: BaseException) -> bool:
    """Whether no connection was made at all (refused, no route, unknown name)."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return False
        if type(seen).__name__ in ("NewConnectionError", "NameResolutionError"):
            return True
        reason = getattr(seen, "reason", None)
        inner = seen.args[0] if seen.args else None
        seen = next((e for e in (reason, inner) if isinstance(e, BaseException)), seen.__cause__)
    return False
