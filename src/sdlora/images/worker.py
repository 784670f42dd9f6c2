"""The process that decodes: `python -P -m sdlora.images.worker`, started and spoken to by `decoder`.

Decoders read what strangers wrote. Here they have a limit on memory and, for each picture, one on computing time that
the kernel enforces; what breaks is this process. It opens no file and no connection, and ends when its input ends.

A request is a line of JSON and the file's bytes; an answer is a line of JSON and, if all went well, pixels.
"""

import contextlib
import importlib
import io
import json
import re
import resource
import signal
import sys
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from sdlora.images.pictures import to_rgb, upright

MAX_SCANS = 100  # of a JPEG; encoders write about 10, and each costs a pass over the whole picture
_SOI, _SOS, _EOI = 0xD8, 0xDA, 0xD9
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # not a stuffed byte, not a restart


class Bad(Exception):
    """A picture that is refused: the answer says so."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(facts)
        self.facts = facts


def main(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests until there are none."""
    Image.preinit()
    for name in ("Tiff", "WebP", "Avif"):
        with contextlib.suppress(ImportError):  # not in every build of Pillow
            importlib.import_module(f"PIL.{name}ImagePlugin")
    Image.MAX_IMAGE_PIXELS = None  # the request states the limit, and the answer says so better
    while line := source.readline():
        request = json.loads(line)
        content = source.read(request["bytes"])
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        try:
            facts, pixels = _answer(content, request, source, sink)
        except Bad as bad:
            facts, pixels = bad.facts, b""
        except MemoryError:
            facts, pixels = {"problem": "memory"}, b""
        except Exception as error:  # decoders and metadata break in ways that have nothing in common
            known = isinstance(error, OSError | SyntaxError | ValueError | EOFError)
            facts, pixels = (
                {"problem": "damaged", "error": str(error) if known else f"{type(error).__name__}: {error}"},
                b"",
            )
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(sink, {**facts, "bytes": len(pixels)}, pixels)


def _answer(content: bytes, request: dict[str, Any], source: BinaryIO, sink: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Decode a picture whole: its upright pixels, or a thumbnail of them."""
    with _identify(content, request) as picture:
        if picture.width * picture.height > request["large"]:
            _say(sink, {"large": True, "bytes": 0})
            source.readline()  # it is this picture's turn now
        kind = "JPEG" if picture.format == "MPO" else str(picture.format)  # MPO: a JPEG with more pictures behind it
        if kind == "JPEG" and (scans := scans_of(content)) > MAX_SCANS:
            raise Bad(problem="scans", count=scans, most=MAX_SCANS)
        picture.load()
        whole = to_rgb(picture) if request["thumbnail"] else upright(picture)
    facts = {"format": kind, "width": whole.width, "height": whole.height}
    if request["thumbnail"]:
        whole = whole.resize((request["thumbnail"],) * 2, Image.Resampling.BOX)
    return {**facts, "mode": whole.mode, "size": whole.size}, whole.tobytes()


def _identify(content: bytes, request: dict[str, Any]) -> Image.Image:
    """Format and size, before anything is decoded."""
    try:
        picture = Image.open(io.BytesIO(content), formats=[kind for kind in request["formats"] if kind in Image.OPEN])
    except UnidentifiedImageError:  # its own text holds a memory address
        raise Bad(problem="unknown") from None
    if picture.width * picture.height > request["max_pixels"]:
        raise Bad(problem="pixels", width=picture.width, height=picture.height)
    return picture


def scans_of(content: bytes) -> int:
    """How many scans a JPEG has: start-of-scan markers outside of segments, thumbnails in them left out."""
    count, place = 0, 2
    while found := _MARKER.search(content, place):
        kind, place = found[1][0], found.end()
        if kind == _EOI:
            break
        count += kind == _SOS
        if kind not in (_SOI, 0x01):
            place += max(int.from_bytes(content[place : place + 2], "big"), 2)
    return count


def _say(sink: BinaryIO, facts: dict[str, Any], pixels: bytes = b"") -> None:
    sink.write(json.dumps(facts).encode() + b"\n")
    sink.write(pixels)
    sink.flush()


def confine(memory_mib: int) -> None:
    """Limit what this process may use; what a system does not know is left out."""
    for name, most in (("RLIMIT_DATA", memory_mib * 2**20), ("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 0)):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    confine(int(sys.argv[1]))
    main(sys.stdin.buffer, sys.stdout.buffer)
