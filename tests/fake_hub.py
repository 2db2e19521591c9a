"""A hub on this machine: lists and serves files as the Hugging Face hub does, and fails on request."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin")


class FakeHub:
    """repos: the files of each. corrupt: names that are sent with a byte changed. cut: how many bytes of a name are
    sent before the line breaks, after which the hub is down until `mend`. asked: names, and the ranges of them."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.corrupt: set[str] = set()
        self.cut: dict[str, int] = {}
        self.down = False
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""

    def add(self, repo: str, folder: Path) -> None:
        """Serves what lies in a folder."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        self.repos[repo] = {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    def mend(self) -> None:
        """All is well again, and nothing was asked yet."""
        self.corrupt, self.cut, self.down, self.asked = set(), {}, False, []

    def listed(self, repo: str) -> dict[str, Any]:
        """What the hub says of a repository."""
        return {"id": repo, "sha": COMMIT, "siblings": [_sibling(*entry) for entry in self.repos[repo].items()]}


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    size = len(content)
    git = hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
    large = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 130}
    return {"rfilename": name, "size": size, "blobId": git} | ({"lfs": large} if name.endswith(LARGE) else {})


@contextmanager
def served() -> Iterator[FakeHub]:
    """A hub that listens as long as the context lasts."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            if hub.down:
                self.answer(500, b"")
            elif path.startswith("api/models/"):
                repo = path.removeprefix("api/models/")
                if repo in hub.repos:
                    self.answer(200, json.dumps(hub.listed(repo)).encode())
                else:
                    self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            else:
                repo, _, name = path.partition(f"/resolve/{COMMIT}/")
                self.send_file(name, hub.repos[repo][name])

        def send_file(self, name: str, content: bytes) -> None:
            wanted = self.headers.get("Range")
            hub.asked.append((name, wanted))
            if name in hub.corrupt:
                content = bytes([content[0] ^ 1]) + content[1:]
            start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            said = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
            self.answer(206 if wanted else 200, content[start:], said, hub.cut.pop(name, None))

        def answer(self, status: int, body: bytes, said: dict[str, str] | None = None, cut: int | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(said or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body[:cut])
            if cut is not None:
                hub.down = self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
