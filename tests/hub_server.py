"""A stand-in for the Hugging Face Hub that speaks its protocol, on this machine."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """Repositories of the Hub by name, each a folder, and what went over the wire."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, Path] = {}
        self.requests: list[str] = []
        self.cut: str | None = None
        """File whose body ends early."""
        self.status: int | None = None
        """Status of every answer, if set."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0].strip("/")
        if self.server.status is not None:
            self.answer(self.server.status, b"{}")
        elif match := re.fullmatch(r"api/(?:models|datasets)/(.+?)(?:/revision/[^/]+)?", path):
            self.repository(match[1])
        else:
            name, _, rest = path.removeprefix("datasets/").partition("/resolve/")
            self.file(name, rest.partition("/")[2])

    def do_HEAD(self) -> None:
        self.do_GET()

    def repository(self, name: str) -> None:
        if (folder := self.server.repositories.get(name)) is None:
            self.answer(401, b"{}", {"X-Error-Message": "Invalid username or password."})
            return
        files = [
            {"rfilename": str(path.relative_to(folder)), "size": path.stat().st_size}
            for path in folder.rglob("*")
            if path.is_file()
        ]
        about = {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "siblings": files}
        self.answer(200, json.dumps(about).encode())

    def file(self, name: str, file: str) -> None:
        path = self.server.repositories.get(name, Path("/nowhere")) / file
        if not path.is_file():
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        data = path.read_bytes()
        self.answer(
            200,
            data,
            {"X-Repo-Commit": COMMIT, "ETag": f'"{hash(data)}"'},
            cut=file == self.server.cut,
        )

    def answer(
        self, status: int, data: bytes, headers: dict[str, str] | None = None, *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a Hub, empty, and point everything to it and to an empty cache and folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # a truncated download is tried again after a second, five times
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
