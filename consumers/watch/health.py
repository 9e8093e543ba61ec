"""`/healthz`, `/readyz` and `/metrics` of a running consumer, by HTTP."""

from __future__ import annotations

import errno
import json
import logging
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Self

from bus.errors import Misconfigured
from consumers.watch.figures import Figures, Stage

if TYPE_CHECKING:
    from consumers.watch.metrics import Metrics

__all__ = ["STUCK_S", "HealthServer", "not_alive", "not_ready"]

log = logging.getLogger(__name__)

STUCK_S = 120.0
MAX_CLIENTS = 32
CLIENT_S = 10.0  # how long one may be silent
_ADDRESS = re.compile(r"(?:(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]*):)?(\d{1,5})")


def not_alive(figures: Figures) -> str | None:
    """Why it should be started anew: it holds a partition that has something to store and does not move, or its event
    loop is stuck. None: it is well. While the bus or the sink is away it is."""
    now_s, stuck_s = figures.clock(), max(STUCK_S, 2 * figures.batch_s)
    if figures.outages:
        return None
    for partition, share in figures.shares.items():
        still_s, lag = now_s - share.still_since_s, share.lag
        if lag and still_s >= stuck_s:
            return f"partition {partition} has {lag:,} messages to store, and none was stored for {still_s:,.0f} s"
    moved_s = [share.still_since_s for share in figures.shares.values()]
    if moved_s and figures.looked_s is not None:
        still_s = now_s - max(figures.looked_s, *moved_s)
        if still_s >= stuck_s:
            return f"it has done nothing for {still_s:,.0f} s, not even looked how far the log reaches"
    return None


def not_ready(figures: Figures) -> str | None:
    """Why it neither stores nor stands by; None: it does."""
    now_s = figures.clock()
    for system, outage in figures.outages.items():
        return f"the {system} is away for {now_s - outage.since_s:,.0f} s: {outage.reason}"
    if figures.stage in (Stage.STARTING, Stage.STOPPING):
        return f"the consumer is {figures.stage.value}"
    return None


class HealthServer:
    """Answers from threads of its own, from the moment it is made until `close`. It only reads the figures."""

    def __init__(self, address: str, figures: Figures) -> None:
        """`address` is `PORT`, of the loopback interface, or `HOST:PORT`; port 0 is any that is free.

        Raises `Misconfigured`.
        """
        host, port = _parse(address)
        try:
            family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            self._server = _Server(family, where, figures)
        except OSError as error:
            reason = "another process uses it" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise Misconfigured.of("health", f"cannot listen at {address}: {reason}; choose another") from None
        host, port = self._server.socket.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), daemon=True, name="crawlbus-health"
        )
        self._thread.start()

    def close(self) -> None:
        """Harmless if called twice."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parse(address: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[2]) > 65535:
        raise Misconfigured.of("health", f"{address!r} is no address: write a port like 9100, or 0.0.0.0:9100")
    return (match[1] or "127.0.0.1").strip("[]"), int(match[2])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = MAX_CLIENTS

    def __init__(self, family: socket.AddressFamily, where: Any, figures: Figures) -> None:
        self.address_family, self.figures = family, figures
        self.metrics = _metrics(figures)
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__(where, _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would ask a name server for our name

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread can be started
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a request for health was not answered", exc_info=True)


def _metrics(figures: Figures) -> Metrics | None:
    try:
        from consumers.watch.metrics import Metrics
    except ModuleNotFoundError:
        return None
    return Metrics(figures)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._tell(not_alive(self.server.figures))
        elif path == "/readyz":
            self._tell(not_ready(self.server.figures))
        elif path != "/metrics":
            self._answer(404, "text/plain", b"there are /healthz, /readyz and /metrics\n")
        elif self.server.metrics is None:
            self._answer(501, "text/plain", b"metrics need an extra: pip install 'crawlbus[metrics]'\n")
        else:
            body, content_type = self.server.metrics.render(self.headers.get("Accept", ""))
            self._answer(200, content_type, body)

    do_HEAD = do_GET

    def _tell(self, trouble: str | None) -> None:
        figures = self.server.figures
        now_s, outages = figures.clock(), figures.outages
        facts: dict[str, object] = {
            "state": figures.stage.value,
            "lag": figures.lag,
            "outage": {system: round(now_s - outage.since_s, 1) for system, outage in outages.items()} or None,
        }
        if trouble is not None:
            facts["reason"] = trouble
        body = json.dumps(facts, ensure_ascii=False).encode(errors="replace") + b"\n"
        self._answer(200 if trouble is None else 503, "application/json", body)

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "crawlbus"

    def log_message(self, format: str, *args: Any) -> None:
        pass
