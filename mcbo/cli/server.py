"""The ``invoke`` API of grand-challenge.org: a server that does a job whenever it is asked to, one at a time.

``GET /health`` answers 200 once jobs can be done; ``POST /invoke`` does one, and answers 201 when its results are written.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, SimpleQueue
from socketserver import TCPServer
from typing import Any

from mcbo.core.errors import InputError
from mcbo.core.log import log, printable

PORT = 4743
"""Where the site asks."""

MAX_BODY_BYTES = 1 << 20
"""Of a request, whose body says nothing."""

_SIGNALS_EVERY_S = 0.5
"""How often to look for signals: one that comes just before the wait for a job begins does not end it."""

_METHODS = {"/health": ("GET", "HEAD"), "/invoke": ("POST",)}


def serve(job: Callable[[], str], *, port: int = PORT) -> None:
    """Does ``job``, which returns what to answer, at every request, in this thread, until an exception such as SystemExit.

    Raises:
        InputError: if the port cannot be opened.
    """
    with InvokeServer(port) as server:
        log.info("listening on port %d", server.server_port)
        while True:
            server.do_next(job)


class InvokeServer(ThreadingHTTPServer):
    """Answers requests in threads of its own. What they ask for is done by ``do_next``, in the thread that calls that.

    So signals, which only the main thread gets, end a job in an orderly way.

    Raises:
        InputError: if the port cannot be opened.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        try:
            super().__init__(("", port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"port {port}: expected one that can be opened, but: {error}") from error
        self._asked: SimpleQueue[Future[str]] = SimpleQueue()
        self._free = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.1,), name="mcbo-invoke", daemon=True).start()

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would look up the host's name, for which there may be no network
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of a connection that broke, says so in the log; its job goes on."""
        del request
        log.debug("the connection to %s broke", client_address)

    def _next(self) -> Future[str]:
        while True:
            try:
                return self._asked.get(timeout=_SIGNALS_EVERY_S)
            except Empty:
                continue

    def ask(self) -> Future[str] | None:
        """Asks for a job; returns its future answer, or None if another one is not done yet."""
        if not self._free.acquire(blocking=False):
            return None
        answer: Future[str] = Future()
        self._asked.put(answer)
        return answer

    def do_next(self, job: Callable[[], str]) -> None:
        """Waits until a job is asked for, and does it; its errors are the answer, except for those that end the program."""
        answer = self._next()
        try:
            text = job()
        except Exception as error:  # whatever it is, the next job may go well
            log.error("%s", error)
            self._free.release()
            answer.set_exception(error)
        except BaseException:
            answer.set_exception(InputError("the server was stopped"))
            raise
        else:
            self._free.release()
            answer.set_result(text)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds for which a client may be silent before its request is complete
    error_message_format = "%(message)s: %(explain)s\n"
    error_content_type = "text/plain; charset=utf-8"
    server: InvokeServer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # of any method, known to HTTP or not
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        path = self._path()
        length = self._body_bytes()
        if length is None:
            return
        self.rfile.read(length)
        if path not in _METHODS:
            self._send(HTTPStatus.NOT_FOUND, f"{printable(path)[:100]}: expected GET /health or POST /invoke")
        elif self.command not in _METHODS[path]:
            refusal = f"{path}: expected {_METHODS[path][0]}, got {printable(self.command)[:20]}"
            self._send(HTTPStatus.METHOD_NOT_ALLOWED, refusal)
        elif path == "/health":
            self._send(HTTPStatus.OK, "ready")
        else:
            self._invoke()

    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _body_bytes(self) -> int | None:
        """The size of the body; None, once that is refused, if it has none, or is too large to be read."""
        text = self.headers.get("Content-Length", "0").strip()
        if "Transfer-Encoding" in self.headers:
            refusal = HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length instead of a Transfer-Encoding"
        elif not (text.isascii() and text.isdigit() and len(text) < 19):
            refusal = HTTPStatus.BAD_REQUEST, f"expected a Content-Length of bytes, got {printable(text)[:40]}"
        elif int(text) > MAX_BODY_BYTES:
            refusal = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a body of at most {MAX_BODY_BYTES} bytes, got {int(text)}"
        else:
            return int(text)
        self.close_connection = True  # what follows is the body, and no request
        self._send(*refusal)
        return None

    def _invoke(self) -> None:
        answer = self.server.ask()
        if answer is None:
            self._send(HTTPStatus.CONFLICT, "expected one job at a time, but another one is not done yet; ask again later")
        elif (error := answer.exception()) is not None:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, str(error) or type(error).__name__)
        else:
            self._send(HTTPStatus.CREATED, answer.result())

    def _send(self, status: HTTPStatus, text: str) -> None:
        body = f"{printable(text)}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", ", ".join(_METHODS[self._path()]))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's own name)
        log.debug("%s: %s", self.address_string(), format % args)
