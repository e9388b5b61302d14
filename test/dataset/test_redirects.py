"""Redirects of a web server: an image comes from the host that was named, or not at all."""

import functools
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mcbo.dataset import fetch
from mcbo.io.source import Source

BODY = b"an image"


class Handler(BaseHTTPRequestHandler):
    """Answers ``/image`` with a file, and other paths as ``targets`` says, with a redirect."""

    targets: dict[str, str]
    asked: list[str]

    def do_HEAD(self) -> None:
        self.asked.append(f"{self.server.server_port} {self.path}")  # type: ignore[attr-defined]
        target = self.targets.get(self.path.partition("?")[0])
        self.send_response(200 if target is None else 302)
        if target is not None:
            self.send_header("Location", target)
        self.send_header("Content-Length", str(len(BODY) if target is None else 0))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.path.partition("?")[0] not in self.targets:
            self.wfile.write(BODY)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """The ports of two servers."""
    fsspec.get_filesystem_class("http").clear_instance_cache()
    monkeypatch.setattr(fetch, "PAUSE_S", 0.0)
    Handler.targets, Handler.asked = {}, []
    running = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    threads = [threading.Thread(target=functools.partial(one.serve_forever, poll_interval=0.01)) for one in running]
    for thread in threads:
        thread.start()
    yield running[0].server_port, running[1].server_port
    for one in running:
        one.shutdown()
        one.server_close()
    for thread in threads:
        thread.join()


def fetched(url: str, folder: Path) -> Source:
    return fetch.fetch(Source(url), folder / "copy", limit=1000)


@pytest.mark.parametrize("target", ["/image", "image", "http://127.0.0.1:{here}/image", "//127.0.0.1:{here}/image", "/twice"])
def test_a_redirect_on_the_same_host_is_followed(servers: tuple[int, int], tmp_path: Path, target: str) -> None:
    Handler.targets = {"/moved": target.format(here=servers[0]), "/twice": "/image"}
    found = fetched(f"http://127.0.0.1:{servers[0]}/moved?sig=SECRET", tmp_path)
    assert found.local is not None, found.problem
    assert found.local.read_bytes() == BODY


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{there}/image",
        "http://localhost:{here}/image",
        "http://user:SECRET@127.0.0.1:{there}/image?sig=SECRET",
        "//localhost:{there}/image",
        "https://127.0.0.1:{here}/image",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "/twice",
        "http://[::1",
        "mailto:someone@example.org",
    ],
)
def test_a_redirect_to_another_host_is_a_sentence(servers: tuple[int, int], tmp_path: Path, target: str) -> None:
    here, there = servers
    Handler.targets = {"/moved": target.format(here=here, there=there), "/twice": f"http://127.0.0.1:{there}/image"}
    found = fetched(f"http://127.0.0.1:{here}/moved?sig=SECRET", tmp_path)
    assert found.local is None
    assert not list(tmp_path.iterdir())
    assert "SECRET" not in found.problem
    assert not [line for line in Handler.asked if line.startswith(str(there))]
    if "[" not in target and "mailto" not in target:
        assert found.problem.startswith("the server redirects to another one, ")
        assert "after 3 attempts" not in found.problem
