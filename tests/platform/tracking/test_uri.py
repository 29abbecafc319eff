"""A tracking server that is dead, mistyped or closed is said before anything is done."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from deft.platform.tracking.system_metrics import sample
from deft.platform.tracking.uri import warn_if_unreachable, why_unreachable
from helpers import free_port


@contextmanager
def server(status: int, body: bytes) -> Iterator[str]:
    """Answer every question alike, but for 403 only those without a token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            has_token = self.headers["Authorization"] == "Bearer open sesame"
            self.send_response(200 if has_token else status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_server_is_asked_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_unreachable("sqlite:///runs/mlflow.db") == ""
    with server(404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}') as uri:
        assert why_unreachable(uri) == ""
    with server(200, b"<html>") as uri:
        assert "it is not MLflow" in why_unreachable(uri)
    with server(403, b"{}") as uri:
        assert "the server refuses access (403); set MLFLOW_TRACKING_USERNAME" in (
            why_unreachable(uri)
        )
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "open sesame")
        assert why_unreachable(uri) == ""
    said: list[str] = []
    warn_if_unreachable(f"http://127.0.0.1:{free_port()}", said.append)
    (warning,) = said
    assert "no answer (ConnectionError)" in warning
    assert warning.endswith("results are queued and delivered when it answers")


def test_use_of_the_machine_is_measured() -> None:
    use = sample()
    assert 0 <= use["system/cpu_utilization_percentage"] <= 100
    assert 0 < use["system/system_memory_usage_percentage"] < 100
