"""The invoke API: requests, good and bad, to a server on this machine."""

import http.client
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from mcbo.cli.server import MAX_BODY_BYTES, InvokeServer, serve
from mcbo.core.errors import InputError


@pytest.fixture
def server() -> Iterator[InvokeServer]:
    with InvokeServer(0) as running:
        yield running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def ask(server: InvokeServer, method: str, path: str, **headers: str) -> tuple[int, str]:
    """Status and text of the answer."""
    connection = http.client.HTTPConnection("localhost", server.server_port, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_a_ready_server_is_healthy(server: InvokeServer) -> None:
    assert ask(server, "GET", "/health") == (200, "ready\n")
    assert ask(server, "GET", "/health?verbose=1")[0] == 200
    assert ask(server, "HEAD", "/health") == (200, "")


def test_jobs_are_done_as_often_as_asked_and_errors_do_not_end_it(server: InvokeServer, pool: ThreadPoolExecutor) -> None:
    def job(outcome: str | Exception) -> str:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    for outcome, answer in (
        ("/output/a", (201, "/output/a\n")),
        (InputError("socket 'us': no such file"), (500, "socket 'us': no such file\n")),
        (ZeroDivisionError("a fault"), (500, "a fault\n")),
        (MemoryError(), (500, "MemoryError\n")),
        ("/output/b", (201, "/output/b\n")),
    ):
        asked = pool.submit(ask, server, "POST", "/invoke")
        server.do_next(lambda outcome=outcome: job(outcome))  # type: ignore[misc]
        assert asked.result(20) == answer


def test_while_a_job_runs_others_are_refused_and_the_server_is_healthy(server: InvokeServer, pool: ThreadPoolExecutor) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def job() -> str:
        begun.set()
        assert goes_on.wait(20)
        return "done"

    first: Future[tuple[int, str]] = pool.submit(ask, server, "POST", "/invoke")

    def meanwhile() -> tuple[int, int]:
        assert begun.wait(20)
        try:
            return ask(server, "POST", "/invoke")[0], ask(server, "GET", "/health")[0]
        finally:
            goes_on.set()

    others = pool.submit(meanwhile)
    server.do_next(job)
    assert others.result(20) == (409, 200)
    assert first.result(20) == (201, "done\n")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 404),
        ("GET", "/health/more", {}, 404),
        ("POST", "/invocations", {}, 404),
        ("GET", "/invoke", {}, 405),
        ("POST", "/health", {}, 405),
        ("DELETE", "/invoke", {}, 405),
        ("NONSENSE", "/invoke", {}, 405),
        ("POST", "/invoke", {"Content-Length": "many"}, 400),
        ("POST", "/invoke", {"Content-Length": "-1"}, 400),
        ("POST", "/invoke", {"Content-Length": str(MAX_BODY_BYTES + 1)}, 413),
        ("POST", "/invoke", {"Transfer-Encoding": "chunked"}, 411),
    ],
)
def test_bad_requests_are_refused_with_a_sentence(
    server: InvokeServer, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    got, text = ask(server, method, path, **headers)
    assert got == status
    assert "expected" in text
    assert ask(server, "GET", "/health")[0] == 200


@pytest.mark.parametrize("line", [b"nonsense", b"\x16\x03\x01", b"GET /health HTTP/9.9.9", b"GET /" + 70000 * b"a"])
def test_what_is_no_http_is_refused_and_does_no_harm(server: InvokeServer, line: bytes) -> None:
    with socket.create_connection(("localhost", server.server_port), timeout=20) as connection:
        connection.sendall(line + b"\r\n\r\n")
        assert re.search(rb"Bad request|URI Too Long", connection.recv(1000), re.IGNORECASE)
    assert ask(server, "GET", "/health")[0] == 200


def test_a_client_that_hangs_up_does_not_keep_others_from_asking(server: InvokeServer, pool: ThreadPoolExecutor) -> None:
    with socket.create_connection(("localhost", server.server_port), timeout=20) as connection:
        connection.sendall(b"POST /invoke HTTP/1.1\r\nHost: here\r\n\r\n")
        server.do_next(lambda: "done")
    asked = pool.submit(ask, server, "POST", "/invoke")
    server.do_next(lambda: "done again")
    assert asked.result(20) == (201, "done again\n")


def test_what_ends_the_program_ends_the_server(pool: ThreadPoolExecutor) -> None:
    def job() -> str:
        raise SystemExit(143)

    with InvokeServer(0) as server:
        asked = pool.submit(ask, server, "POST", "/invoke")
        with pytest.raises(SystemExit):
            server.do_next(job)
        assert asked.result(20) == (500, "the server was stopped\n")


def test_a_port_that_is_taken_is_refused(server: InvokeServer) -> None:
    with pytest.raises(InputError, match=f"port {server.server_port}: expected one that can be opened"):
        serve(lambda: "", port=server.server_port)
    with pytest.raises(InputError, match="port 99999: expected one that can be opened"):
        serve(lambda: "", port=99999)
