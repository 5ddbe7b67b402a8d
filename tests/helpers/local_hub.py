"""What the stand-ins for the hub share: a server on this machine, and requests that print nothing."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Protocol


class Hub(Protocol):
    """What a server has. url: its address, once it runs."""

    url: str


class Handler(BaseHTTPRequestHandler):
    """Answers one connection; `hub` is what the server has."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Any, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *_args: object) -> None:
        """Nothing is printed."""


@contextmanager
def running(hub: Hub, handler: type[Handler]) -> Iterator[None]:
    """The server, at `hub.url`, while the block runs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, hub)) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
