"""A base and its captioner by hub name and commit, from a small hub on loopback and from the hub's own cache."""

import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from conftest import ROOT

COMMITS = {"somebody/tiny-sd": "a" * 40, "somebody/tiny-blip": "b" * 40}
FILES = {
    name: {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    for name, folder in ((name, ROOT / "models" / name.split("/")[1]) for name in COMMITS)
}

# Prints how the captioner describes a picture and what the base predicts, or what is wrong with each.
USE = """
import sys, torch
from PIL import Image
from sdlora.adapters import load_adapter
from sdlora.caption import Captioner
from sdlora.errors import SdloraError
from sdlora.params import Base, Caption
model, revision, blip, blip_revision = (word or None for word in sys.argv[1:])
torch.set_num_threads(1)
def describe():
    return Captioner(blip, blip_revision, Caption(), 1).caption(Image.new("RGB", (64, 64), "red"))
def predict():
    adapter = load_adapter(Base(model=model, revision=revision, family="sd", size_px=64, captioner="-"), "cpu")
    noisy = torch.linspace(-1, 1, 1024).view(1, 4, 16, 16)
    with torch.inference_mode():
        return adapter.predict(noisy, torch.tensor([500]), adapter.encode_prompts(["a captain"])).sum().item()
for work in (describe, predict):
    try:
        print(work())
    except SdloraError as error:
        print(f"{type(error).__name__}: {error}")
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download of models needs; each has one commit."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        name = next((name for name in COMMITS if f"/{name}/" in path or path.endswith(name)), None)
        if name is None:
            return self.say(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        commit = COMMITS[name]
        if path.startswith("/api/"):
            if "/revision/" in path and path.split("/revision/")[1] not in ("main", commit):
                return self.say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            listed = [{"rfilename": file, "type": "file", "path": file, "oid": _sha1(p), "size": p.stat().st_size}
                      for file, p in FILES[name].items()]  # fmt: skip
            whole = {"id": name, "sha": commit, "private": False, "gated": False, "siblings": listed}
            return self.say(200, json.dumps(listed if "/tree/" in path else whole).encode())
        revision, file = path.split("/resolve/")[1].split("/", 1)
        if revision not in ("main", commit):
            return self.say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if file not in FILES[name]:
            return self.say(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        place = FILES[name][file]
        return self.say(200, place.read_bytes(), {"ETag": f'"{_sha1(place)}"', "X-Repo-Commit": commit})

    do_HEAD = do_GET

    def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        sent = {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}
        for key, value in sent.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def use(cache: Path, *words: str, **env: str) -> list[str]:
    """In a process of its own: the hub's client reads its settings when it is imported."""
    settings = {**os.environ, "HF_HOME": str(cache), "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", **env}
    command = [sys.executable, "-c", USE, *words]
    done = subprocess.run(command, env=settings, text=True, capture_output=True, check=True, timeout=300)
    return done.stdout.splitlines()


def test_weights_come_from_the_named_commit_once_or_it_is_told_how(tmp_path: Path) -> None:
    (sd, sd_commit), (blip, blip_commit) = COMMITS.items()
    here = use(tmp_path, str(ROOT / "models/tiny-sd"), "", str(ROOT / "models/tiny-blip"), "")
    assert len(here) == 2 and "Error" not in here[0] + here[1]
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
        assert use(tmp_path, sd, sd_commit, blip, blip_commit, **online) == here
        said = [use(tmp_path, sd, "c" * 40, blip, "c" * 40, **online)]
        server.shutdown()
    assert use(tmp_path, sd, sd_commit, blip, blip_commit) == here, "the next time without a network"
    said.append(use(tmp_path, sd, "c" * 40, blip, "c" * 40))
    for captioner, base in said:  # another commit than the cached one, with the hub at hand and without
        assert captioner.startswith("MissingError") and f"`hf download {blip} --revision {'c' * 40}`" in captioner
        assert base.startswith("MissingError") and f"`hf download {sd} --revision {'c' * 40}`" in base
