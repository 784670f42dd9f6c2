"""DVC's remotes: a folder, and servers, real programs on loopback: S3 (moto), SSH (Debian's sshd) and WebDAV (WsgiDAV).

with s3(folder) as remote:
    subprocess.run(["dvc", "remote", "add", "-d", "store", remote.url])
"""

import getpass
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

from helpers import free_ports, wait_for

SSHD = "/usr/sbin/sshd"  # it has to be called by its whole path


@dataclass(frozen=True)
class Remote:
    """What `dvc remote add` and `dvc remote modify` are told."""

    url: str
    options: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def folder(place: Path) -> Iterator[Remote]:
    yield Remote(str(place / "store"))


@contextmanager
def s3(place: Path) -> Iterator[Remote]:
    """A bucket on moto's server."""
    (port,) = free_ports(1)
    with _running(place, [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]):
        wait_for(lambda: _status(port, "PUT", "/loras") == 200)
        keys = {"access_key_id": "somebody", "secret_access_key": "secret"}
        yield Remote("s3://loras/store", {"endpointurl": f"http://127.0.0.1:{port}", "region": "us-east-1", **keys})


@contextmanager
def ssh(place: Path) -> Iterator[Remote]:
    """Debian's sshd, which lets in who has the key."""
    (port,) = free_ports(1)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)  # where root's sshd leaves its rights: systemd makes it, a container doesn't
    known = {"Port": port, "ListenAddress": "127.0.0.1", "HostKey": place / "host", "PidFile": place / "pid",
             "AuthorizedKeysFile": place / "user.pub", "StrictModes": "no", "PasswordAuthentication": "no",
             "UsePAM": "no", "Subsystem": "sftp internal-sftp"}  # fmt: skip
    (place / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in known.items()), "utf-8")
    with _running(place, [SSHD, "-D", "-e", "-f", str(place / "sshd_config")]):
        wait_for(lambda: b"listening" in (place / "said").read_bytes())
        yield Remote(f"ssh://{getpass.getuser()}@127.0.0.1:{port}{place}/store", {"keyfile": str(place / "user")})


@contextmanager
def webdav(place: Path) -> Iterator[Remote]:
    """WsgiDAV over a folder; DVC makes no base folder there."""
    (port,) = free_ports(1)
    (place / "root/store").mkdir(parents=True)
    words = ["--host", "127.0.0.1", "--port", str(port), "--root", str(place / "root"), "--auth", "anonymous"]
    with _running(place, [str(Path(sys.executable).with_name("wsgidav")), "--no-config", *words]):
        wait_for(lambda: _status(port, "GET", "/store/") == 200)
        yield Remote(f"webdav://127.0.0.1:{port}/store")


REMOTES = {"s3": s3, "ssh": ssh, "webdav": webdav}


def missing() -> list[str]:
    """What a remote's server needs and is not installed."""
    return [] if shutil.which(SSHD) else ["ssh"]


@contextmanager
def _running(place: Path, words: list[str]) -> Iterator[None]:
    with (place / "said").open("wb") as said:
        server = subprocess.Popen(words, stdout=said, stderr=said, cwd=place)
    try:
        yield
    finally:
        server.terminate()
        server.wait(30)


def _status(port: int, method: str, path: str) -> int:
    """What a server answers; 0 if it does not yet."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()
