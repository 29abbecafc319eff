"""`deft push` against a hub on the loopback interface, which keeps what it is sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from deft.platform.cli import app
from deft.platform.commands.model.push import push_model
from deft.platform.console import RunConsole
from deft.platform.errors import StageError, UserError
from deft.platform.records.run_directory import RunDirectory
from deft.platform.run.model_card import write_card
from helpers import make_prediction, write_finished_run


class Hub(ThreadingHTTPServer):
    """The part of the hub's protocol by which small files become a commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        """Answer what the repository is."""
        is_private = self.server.created[0]["visibility"] == "private"
        self.answer({"id": "me/reader", "private": is_private})

    def do_POST(self) -> None:
        """Take a repository, what is to be sent, and files."""
        self.server.tokens.add(self.headers["Authorization"])
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refuses:
            self.answer({"error": "no right to write there"}, 403)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.address}/me/reader"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            commit = f"{self.server.address}/me/reader/commit/{'0' * 40}"
            self.answer({"commitUrl": commit, "commitOid": "0" * 40, "pullRequestUrl": None})
        else:
            self.answer({"error": self.path}, 404)

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Start a hub that this process takes for the real one."""
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()


@pytest.fixture
def run(tmp_path: Path, save_small_model: Callable[[Path], None]) -> RunDirectory:
    tables = {"eval": {"figfont": [make_prediction(0, is_correct=True)]}}
    run = write_finished_run(tmp_path / "runs", tables, objective="DEFT")
    save_small_model(run.path / "model")
    write_card(run)
    return run


def push(run: RunDirectory[Any], name: str) -> None:
    arguments = ["push", name, "me/reader", "--root", str(run.path.parent)]
    app(arguments, standalone_mode=False)


def test_model_and_card_become_a_private_repository(
    hub: Hub, run: RunDirectory[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, "figfont-tiny-DEFT")
    assert f"{hub.address}/me/reader (private)" in capsys.readouterr().out
    assert hub.tokens == {"Bearer hf_secret"}
    assert hub.created[0]["visibility"] == "private"
    sent = {path: file for path, file in hub.files.items() if path != ".gitattributes"}
    model = run.path / "model"
    assert sent == {
        str(file.relative_to(model)): file.read_bytes()
        for file in model.rglob("*")
        if file.is_file()
    }
    assert ModelCard(sent["README.md"].decode()).data.library_name == "transformers"
    hub.refuses = True
    with pytest.raises(StageError, match="no right to write there") as refusal:
        push(run, "figfont-tiny-DEFT")
    assert str(refusal.value).startswith("me/reader: the hub does not take the model (")


def test_without_a_token_or_a_card_nothing_is_sent(
    hub: Hub, run: RunDirectory[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        with pytest.raises(UserError, match="HF_TOKEN: not set, and nobody is logged in; "):
            push(run, run.path.name)
    with pytest.raises(UserError, match="give it as ORG/NAME"):
        push_model(run.path, "a/b/c", RunConsole(), public=False)
    (run.path / "model" / "README.md").unlink()
    with pytest.raises(UserError, match="no such file; the command of this run writes it"):
        push(run, run.path.name)
    assert not hub.tokens
