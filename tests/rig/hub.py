"""As much of the Hugging Face hub as a download needs, on loopback."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import MappingProxyType

GATED = "gated/b"


class Hub(ThreadingHTTPServer):
    """Models or datasets, each at one commit; `GATED` is gated, and there is nothing else.

    Args:
        repositories: By name, the commit and the files' content.

    Attributes:
        log: The paths that were asked for.
    """

    def __init__(self, repositories: Mapping[str, tuple[str, Mapping[str, bytes]]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.log: list[str] = []

    @property
    def env(self) -> dict[str, str]:
        """What has the hub's own client ask here."""
        endpoint = f"http://127.0.0.1:{self.server_port}"
        return {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def serving(repositories: Mapping[str, tuple[str, Mapping[str, bytes]]]) -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    with Hub(repositories) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.log.append(path)
        if f"/{GATED}/" in f"{path}/":
            return self.say(403, b"{}", {"X-Error-Code": "GatedRepo"})
        name = next((name for name in self.server.repositories if f"/{name}/" in f"{path}/"), None)
        if name is None:
            return self.say(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        commit, files = self.server.repositories[name]
        asked, _, file = path.partition("/resolve/")[2].partition("/")
        if not file:  # the api names a revision in other places
            asked = path.partition("/revision/")[2] or "main"
        if asked not in ("main", commit):
            return self.say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if not file:
            listed = [{"rfilename": file, "type": "file", "path": file, "oid": _etag(content), "size": len(content)}
                      for file, content in files.items()]  # fmt: skip
            whole = {"id": name, "sha": commit, "private": False, "gated": False, "siblings": listed}
            return self.say(200, json.dumps(listed if "/tree/" in path else whole).encode())
        if file not in files:
            return self.say(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return self.say(200, files[file], {"ETag": f'"{_etag(files[file])}"', "X-Repo-Commit": commit})

    do_HEAD = do_GET

    def say(self, status: int, body: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
