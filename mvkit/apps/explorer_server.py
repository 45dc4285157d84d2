"""The server of the explorer: a few files and questions, on this machine, for whoever has its
secret address.

Every request needs the secret as the beginning of its path, the name of this machine as its Host,
so that no page elsewhere whose name leads here is answered, and the page's own Origin where it
sends one. Questions are JSON of bounded size and are answered one at a time.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socketserver
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn

import attrs

from mvkit.errors import MvkitError

HOST = "127.0.0.1"  # never another: the page shows whatever data the run has
NAMES = (HOST, "localhost")
LARGEST = 256 * 1024  # bytes of a question
DISCARDED = 4 * 1024 * 1024  # bytes of a larger one that are read, so that the answer arrives
PATIENCE = 30  # seconds that a slow client is waited for
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Referrer-Policy": "no-referrer",  # the address has the secret in it
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
JSON = "application/json"
Answering = Callable[[dict[str, Any]], dict[str, Any]]


@attrs.frozen
class Content:
    """What is sent: a media type, and bytes."""

    media_type: str
    body: bytes

    @classmethod
    def of_json(cls, value: object) -> Content:
        """Plain data as JSON."""
        return cls(JSON, json.dumps(value, allow_nan=False).encode())


class Refused(Exception):
    """A request that is not answered, and why.

    Args:
        status: of HTTP.
        reason: in words.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class ExplorerServer(ThreadingHTTPServer):
    """A server of files and questions on the loopback address.

    Args:
        port: to listen at; 0: any that is free.
        files: what is read, by name; that called `` is the page.
        questions: functions from JSON to JSON, by name.
        secret: the beginning of all paths; None: a new one.

    Raises:
        OSError: the port is in use.
    """

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # where it would share the port with others

    def __init__(
        self,
        port: int,
        files: Mapping[str, Content],
        questions: Mapping[str, Answering],
        *,
        secret: str | None = None,
    ) -> None:
        self.files = dict(files)
        self.questions = dict(questions)
        self.secret = secrets.token_urlsafe(24) if secret is None else secret
        self.lock = threading.Lock()  # models are asked one question at a time
        super().__init__((HOST, port), Handler)

    def server_bind(self) -> None:
        """Binds without asking the network what this machine is called, as the standard does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name = HOST
        self.server_port = int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that went away before they were answered."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The Hosts by which it may be asked, in lower case."""
        names = [f"{name}:{self.server_port}" for name in NAMES]
        return tuple(names + list(NAMES)) if self.server_port == 80 else tuple(names)

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        return f"http://{HOST}:{self.server_port}/{self.secret}/"


class Handler(BaseHTTPRequestHandler):
    """One request, which is checked before anything is answered."""

    server: ExplorerServer
    timeout = PATIENCE
    server_version = "mvkit"
    sys_version = ""

    def do_GET(self) -> None:
        """Answers with a file."""
        self._respond(self._file)

    def do_POST(self) -> None:
        """Answers a question."""
        self._respond(self._answer)

    def _respond(self, content_of: Callable[[str], Content]) -> None:
        """Answers a request that is allowed, or says why not."""
        try:
            self._check_host()
            self._check_origin()
            content = content_of(self._name())
        except Refused as refused:
            self._send(refused.status, Content.of_json({"error": refused.reason}))
        except (ConnectionError, TimeoutError):  # the client has gone
            self.close_connection = True
        except Exception as error:  # the page says it, and goes on
            traceback.print_exc()
            reason = f"the explorer failed: {type(error).__name__}: {error}"
            self._send(500, Content.of_json({"error": reason}))
        else:
            self._send(200, content)

    def _check_host(self) -> None:
        """Raises Refused if the request calls this machine by another name.

        A page elsewhere whose name was made to lead to this machine sends its own name as Host.
        """
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            raise Refused(403, "asked for by another name than that of this machine")

    def _check_origin(self) -> None:
        """Raises Refused if another page than that of the explorer asks."""
        own = f"http://{self.headers['Host']}".lower()
        for origin in self.headers.get_all("Origin", []):
            if origin.lower() != own:
                raise Refused(403, "asked for by another page than that of the explorer")

    def _name(self) -> str:
        """What is asked for, after the secret.

        Raises:
            Refused: the secret is not there.
        """
        start, _, path = self.path.partition("/")
        secret, slash, name = path.partition("/")
        known = hmac.compare_digest(secret.encode(), self.server.secret.encode())
        if start or not known or not slash:
            raise Refused(404, "nothing is here; expected the whole address, with / at its end")
        return name

    def _file(self, name: str) -> Content:
        if name not in self.server.files:
            raise Refused(404, "no such file")
        return self.server.files[name]

    def _answer(self, name: str) -> Content:
        """The answer to a question, as JSON.

        Raises:
            Refused: a question that there is not, that is too long or no JSON; or what an error of
                mvkit says.
        """
        question = self._question()
        if name not in self.server.questions:
            raise Refused(404, "no such question")
        try:
            with self.server.lock:
                return Content.of_json(self.server.questions[name](question))
        except MvkitError as error:
            raise Refused(400, str(error)) from None

    def _question(self) -> dict[str, Any]:
        """The JSON object that was sent."""
        length = self._length()
        if self.headers.get_content_type() != JSON:
            raise Refused(415, f"expected Content-Type: {JSON}")
        body = self.rfile.read(length)
        try:
            question = json.loads(body, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"no JSON: {error}; expected an object in JSON") from None
        if not isinstance(question, dict):
            raise Refused(400, f"got {type(question).__name__}; expected an object in JSON")
        return question

    def _length(self) -> int:
        """How many bytes the question has.

        Raises:
            Refused: it is not said, or too many.
        """
        text = self.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdigit()) or "Transfer-Encoding" in self.headers:
            raise Refused(411, "expected a Content-Length")
        length = int(text[:20])
        if length > LARGEST:
            self.rfile.read(min(length, DISCARDED))
            raise Refused(413, f"{length} bytes; expected {LARGEST} at most")
        return length

    def _send(self, status: int, content: Content) -> None:
        self.send_response(status)
        for header, value in HEADERS.items():
            self.send_header(header, value)
        self.send_header("Content-Type", content.media_type)
        self.send_header("Content-Length", str(len(content.body)))
        self.end_headers()
        self.wfile.write(content.body)

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """Says in words why a request cannot be read, as the standard asks for it."""
        self.close_connection = True
        self._send(code, Content.of_json({"error": message or "the request cannot be read"}))

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged: paths have the secret in them."""


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
