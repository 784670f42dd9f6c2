"""Attacks on every path by which a stranger's bytes come in; each is a test and a line of `python -m hostile`.

An attack gets an empty folder, tries something, and returns what got through: None if nothing did. A sentence for the
user (`SdloraError`) is a defence; any other exception is a crash, and counts. All servers are on loopback.
"""

import socket
import threading
from collections.abc import Callable
from contextlib import chdir, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sdlora.errors import SdloraError

ATTACKS: list["Attack"] = []


@dataclass(frozen=True)
class Attack:
    """One thing that a stranger may try."""

    group: str
    name: str
    attempt: Callable[[Path], str | None]
    in_suite: bool = True  # else only `python -m hostile` runs it: it takes seconds and is like another

    def run(self, folder: Path) -> str | None:
        """What got through; None if nothing did."""
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with chdir(folder):  # where the store lies
                return self.attempt(folder)
        except SdloraError:
            return None
        except Exception as error:  # whatever it is, a user would have seen a traceback
            return f"crashed: {type(error).__name__}: {str(error)[:200]}"


def attack(
    group: str, name: str, in_suite: bool = True
) -> Callable[[Callable[[Path], str | None]], Callable[[Path], str | None]]:
    """Put a function among the attacks."""

    def keep(attempt: Callable[[Path], str | None]) -> Callable[[Path], str | None]:
        ATTACKS.append(Attack(group, name, attempt, in_suite))
        return attempt

    return keep


class Inside:
    """A server of the local network that nobody may reach: it counts who connects, and hangs up."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.visits: list[bytes] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def url(self, path: str = "secret.png") -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/{path}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(2)
                self.visits.append(connection.recv(200).split(b"\r\n")[0])
                connection.sendall(b"HTTP/1.1 404 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
