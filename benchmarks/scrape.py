"""Fetch 1,000 pictures from a slow loopback server with our fetcher and with the unmodified bing-image-downloader.

    python -m benchmarks.scrape --out scrape.csv

Both get the same 1,000 JPEGs of 512 x 512 px from the same server, which waits before every response as a network
does. Each program runs in a process of its own; its time starts when the first picture is asked for. Ours does all that
`scrape` does: checked addresses, whole decoding, duplicates, a journal that is on the disk before the next step.
"""

import argparse
import asyncio
import csv
import io
import json
import multiprocessing
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
SIDE_PX = 512
HOSTS = 50  # a search's results lie on many hosts


def draw(count: int) -> list[bytes]:
    """Different pictures: the embedded ones enlarged, shifted and re-coloured, with a photograph's grain."""
    files = sorted((ROOT / "data" / "embedded").rglob("*.png"))
    random = np.random.default_rng(0)
    sheets = [np.asarray(Image.open(path).convert("RGB").resize((SIDE_PX, SIDE_PX))) for path in files]
    grain = random.normal(0, 5, (SIDE_PX, SIDE_PX, 1))
    contents = []
    for number in range(count):
        pixels = np.roll(sheets[number % len(sheets)], random.integers(0, SIDE_PX, 2), axis=(0, 1))
        pixels = pixels[..., random.permutation(3)]
        pixels = np.clip(pixels + np.roll(grain, number, 0), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        contents.append(buffer.getvalue())
    return contents


def serve(count: int, delay_s: float, ready: Connection) -> None:
    """Answer `/<number>.jpg` after a while, for ever; tells its port and the bytes of all pictures."""
    contents = draw(count)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        content = contents[int(head.split(b" ")[1].strip(b"/").split(b".")[0])]
        await asyncio.sleep(delay_s)
        size = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n"
        writer.write(f"{size}Connection: close\r\n\r\n".encode() + content)
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        ready.send((server.sockets[0].getsockname()[1], sum(map(len, contents))))
        await server.serve_forever()

    asyncio.run(run())


def find(source: Any, context: Any) -> Iterator[Any]:
    """A search that finds the server's pictures."""
    from sdlora.stages.scrape.source import Candidate

    for rank in range(source.limit):
        yield Candidate("bing", rank, url=f"http://host-{rank % HOSTS}.example/{rank}.jpg", query=source.query)


def ours(port: int, count: int, out: Path) -> int:
    """Our `scrape` with its default limits; returns how many pictures lie there."""
    from sdlora import choices
    from sdlora.config.dataset import Dataset
    from sdlora.config.sources import BingSource
    from sdlora.stages.scrape import gather
    from sdlora.stages.scrape.source import ScrapeContext

    choices.SOURCES["bing"] = "benchmarks.scrape:find"
    context = ScrapeContext(
        allow=lambda address: address.is_loopback, resolve=lambda host, asked: [("127.0.0.1", port)]
    )
    gather(Dataset(sources=(BingSource(kind="bing", query="x", limit=count),), trigger="x"), out, context)
    return len(list((out / "raw").iterdir()))


def theirs(port: int, count: int, out: Path) -> int:
    """The unmodified package's own downloading method, picture after picture as its `run` does."""
    from bing_image_downloader.bing import Bing

    out.mkdir()
    package = Bing("x", count, out, "off", 60, verbose=False)
    for number in range(count):
        package.download_image(f"http://127.0.0.1:{port}/{number}.jpg")
    return len(list(out.iterdir()))


PROGRAMS = {"sdlora": ours, "bing-image-downloader 1.1.3": theirs}


def measure(program: str, port: int, count: int) -> None:
    """Run one program in this process and print what it took, JSON on the last line."""
    work = ROOT / ".sdlora"  # on the disk that real datasets lie on: syncing costs what it costs
    work.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        PROGRAMS[program](port, 2, Path(folder) / "warm")  # imports are not what is measured
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        kept = PROGRAMS[program](port, count, Path(folder) / "out")
        wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"program": program, "pictures": kept, "seconds": round(wall_s, 2),
                      "pictures_per_s": round(kept / wall_s, 1), "cpu_s": round(cpu_s, 2),
                      "peak_rss_mib": round(after.ru_maxrss / 1024, 1)}))  # fmt: skip


def main() -> None:
    """Measure each program in turn, several times, beside one server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--delay-ms", type=float, default=100.0, help="added to every response")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each program, in turn")
    parser.add_argument("--out", type=Path, help="CSV with one row a measurement")
    parser.add_argument("--measure", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.port, args.pictures)
        return
    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(args.pictures, args.delay_ms / 1000, sender), daemon=True
    )
    server.start()
    port, size_bytes = receiver.recv()
    print(f"{args.pictures} JPEGs of {SIDE_PX} x {SIDE_PX} px, {size_bytes / args.pictures / 1024:.0f} KiB on average, "
          f"{args.delay_ms:g} ms added to each response, Python {platform.python_version()}")  # fmt: skip
    rows = []
    for _ in range(args.repeats):
        for program in PROGRAMS:
            rows.append(run_apart(program, port, args.pictures))
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    server.terminate()
    rates = {name: statistics.median(r["pictures_per_s"] for r in rows if r["program"] == name) for name in PROGRAMS}
    print(f"ratio of the medians: {rates['sdlora'] / rates['bing-image-downloader 1.1.3']:.1f}")
    if args.out:
        with args.out.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def run_apart(program: str, port: int, count: int) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scrape", "--measure", program, "--port", str(port)]
    done = subprocess.run([*command, "--pictures", str(count)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    main()
