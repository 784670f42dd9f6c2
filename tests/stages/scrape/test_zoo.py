"""Every bad thing that a search result can be, through the whole of `gather`: the right verdict, and nothing else.

Each test puts one animal between two good pictures.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image, ImageOps
from rig import zoo
from rig.pictures import encoded, picture, rgb
from rig.zoo import LIMITS, Zoo

from sdlora import choices, records
from sdlora.config.dataset import Dataset
from sdlora.config.sources import BingSource, Scrape
from sdlora.images.pictures import open_picture, to_rgb
from sdlora.stages.scrape.gather import gather

Behaviour = zoo.Behaviour | bytes


@dataclass
class Gathering:
    """What came of one run."""

    accepted: dict[str, records.Row] = field(default_factory=dict)
    rejected: dict[str, records.Row] = field(default_factory=dict)
    folder: Path = Path()

    def verdict(self, url: str) -> tuple[str, str]:
        """(accepted, '') or (kind, reason)."""
        if url in self.accepted:
            return "accepted", ""
        return self.rejected[url]["kind"], self.rejected[url]["reason"]

    def opened(self, url: str) -> Image.Image:
        row = self.accepted[url]
        return to_rgb(open_picture((self.folder / "raw" / row["file"]).read_bytes(), url))


@pytest.fixture
def server() -> Iterator[Zoo]:
    with Zoo() as running:
        yield running


@pytest.fixture
def visit(server: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gathering]:
    """Gather these URLs and two good pictures, and look whether anything else was touched."""
    monkeypatch.setitem(choices.SOURCES, "bing", "rig.zoo:find")
    monkeypatch.chdir(tmp_path)

    def run(*urls: str, query: str = "zoo", **limits: Any) -> Gathering:
        first, last = (server.add(f"/good-{number}.jpg", picture(number)) for number in (901, 902))
        monkeypatch.setitem(zoo.RESULTS, query, [first, *urls, last])
        out = tmp_path / "data" / "sets" / "animals"
        source, scrape = BingSource(kind="bing", query=query, limit=50), Scrape(**{**LIMITS, **limits})
        dataset = Dataset(sources=(source,), trigger="x", scrape=scrape)
        before = everything_but(tmp_path, out)
        gather(dataset, out, server.context())
        assert everything_but(tmp_path, out) == before, "something was written outside the dataset"
        accepted = records.read_jsonl(out / "manifest.jsonl")
        rejected = records.read_jsonl(out / "rejected.jsonl")
        found = Gathering({row["url"]: row for row in accepted}, {row["url"]: row for row in rejected}, out)
        assert {first, last} <= set(found.accepted)
        assert {p.name for p in out.iterdir()} == {"raw", "manifest.jsonl", "rejected.jsonl", "journal.jsonl"}
        assert {p.name for p in (out / "raw").iterdir()} == {row["file"] for row in accepted}
        return found

    return run


def everything_but(folder: Path, dataset: Path) -> set[str]:
    """All paths that are neither the dataset, nor in it, nor above it."""
    related = (dataset, *dataset.parents)
    return {str(path) for path in folder.rglob("*") if path not in related and dataset not in path.parents}


JPEG, PNG = encoded(rgb(1), "JPEG"), encoded(rgb(2))
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="300" height="300"></svg>'
NOT_PICTURES: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "half png": (PNG[: len(PNG) // 2], "truncated"),
    "html named jpg": (b"<!doctype html><html><body>not found</body></html>", "none of PNG"),
    "html with a bitmap's magic": (b"BM<html>" + b" " * 500, "not a readable picture"),
    "svg named jpg": (SVG, "none of PNG"),
    "zero bytes": (b"", "no bytes"),
    "tiff": (encoded(rgb(3), "TIFF"), "none of PNG"),
    "only a header": (PNG[:33], "not a readable picture"),
    "16 bytes of jpeg": (JPEG[:16], "not a readable picture"),
    "20000 x 20000 png": (zoo.png_of(20_000, 20_000, b"x\x9c\x03\x00\x00\x00\x00\x01"), "pixels"),
    "decompression bomb": (lambda: zoo.bomb(6000), "6000 x 6000 px is more than 32000000 pixels"),
}


@pytest.mark.parametrize("name", NOT_PICTURES)
def test_what_is_no_picture(name: str, visit: Any, server: Zoo) -> None:
    content, reason = NOT_PICTURES[name]
    content = content() if callable(content) else content
    url = server.add("/animal.jpg", content, Content_Type="image/jpeg")
    kind, said = visit(url).verdict(url)
    assert (kind, reason in said) == ("content", True), said


def test_one_pixel(visit: Any, server: Zoo) -> None:
    url = server.add("/dot.png", encoded(Image.new("RGB", (1, 1))))
    assert visit(url).verdict(url) == ("small", "1 x 1 px; 128 is least")


def sixteen_bit() -> tuple[bytes, Image.Image]:
    grey = np.asarray(rgb(4).convert("L")).astype(np.uint16)
    return encoded(Image.fromarray(grey * 257)), rgb(4).convert("L").convert("RGB")


def with_alpha() -> tuple[bytes, Image.Image]:
    image = rgb(5).quantize(16)
    image.info["transparency"] = 3
    shown = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, "#ffffff")
    ground.alpha_composite(shown)
    return encoded(image, transparency=3), ground.convert("RGB")


def animated(kind: str) -> tuple[bytes, Image.Image]:
    frames = [rgb(number) for number in (6, 7, 8)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    return content, to_rgb(open_picture(encoded(frames[0], kind, **options), "first"))


def cmyk() -> tuple[bytes, Image.Image]:
    return encoded(rgb(9).convert("CMYK"), "JPEG", quality=95), rgb(9)


GOOD: dict[str, tuple[Callable[[], tuple[bytes, Image.Image]], str]] = {
    "cmyk": (cmyk, "JPEG"),
    "16 bit": (sixteen_bit, "PNG"),
    "palette with alpha": (with_alpha, "PNG"),
    "animated gif": (lambda: animated("GIF"), "GIF"),
    "animated webp": (lambda: animated("WEBP"), "WEBP"),
    "wrong extension": (lambda: (encoded(rgb(10)), rgb(10)), "PNG"),
}


@pytest.mark.parametrize("name", GOOD)
def test_odd_pictures_are_kept_and_open_as_they_look(name: str, visit: Any, server: Zoo) -> None:
    make, kind = GOOD[name]
    content, looks = make()
    url = server.add("/animal.jpg", content, Content_Type="text/html")
    found = visit(url)
    assert found.verdict(url) == ("accepted", "")
    assert found.accepted[url]["format"] == kind
    assert found.accepted[url]["file"].endswith(f".{kind.lower()}")
    difference = np.abs(np.asarray(found.opened(url), float) - np.asarray(looks, float))
    assert difference.mean() < (8 if name == "cmyk" else 0.5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_stands_upright(orientation: int, visit: Any, server: Zoo) -> None:
    upright = rgb(11).crop((0, 0, 240, 160))
    tagged = upright.copy()
    tagged.getexif()[0x0112] = orientation
    exif = Image.Exif()
    exif[0x0112] = orientation
    url = server.add("/turned.png", encoded(upright, exif=exif.tobytes()))
    found = visit(url)
    expected = ImageOps.exif_transpose(tagged)
    assert np.array_equal(np.asarray(found.opened(url)), np.asarray(expected))
    assert (found.accepted[url]["width_px"], found.accepted[url]["height_px"]) == expected.size


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_copy_with_its_tag_is_a_duplicate(orientation: int, visit: Any, server: Zoo) -> None:
    back = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    stored = rgb(11).crop((0, 0, 240, 160))
    stored.getexif()[0x0112] = back
    stored = ImageOps.exif_transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = server.add("/plain.png", encoded(rgb(11).crop((0, 0, 240, 160))))
    turned = server.add("/turned.jpg", encoded(stored, "JPEG", exif=exif.tobytes()))
    assert visit(plain, turned).verdict(turned)[0] == "duplicate"


NETWORK: dict[str, tuple[Behaviour, str, str]] = {
    "endless body": (zoo.endless, "size", "more than 2 MiB"),
    "slow drip": (zoo.drip, "time", "not here after 1 s"),
    "slow headers": (zoo.drip_headers, "time", "not here after 1 s"),
    "301 to itself": (zoo.redirect("/animal.jpg"), "redirects", "more than 5 redirects"),
    "to 127.0.0.1": (zoo.redirect("http://127.0.0.1/a.png"), "address", "127.0.0.1, which is not a public address"),
    "to 10.x": (zoo.redirect("http://10.20.30.40/a.png"), "address", "not a public address"),
    "to the metadata service": (zoo.redirect("http://169.254.169.254/latest/meta-data/"), "address", "not a public"),
    "to [::1]": (zoo.redirect("http://[::1]/a.png"), "address", "not a public address"),
    "to a decimal address": (zoo.redirect("http://2130706433/a.png"), "address", "127.0.0.1, which is not a public"),
    "to an octal address": (zoo.redirect("http://0177.0.0.01/a.png"), "address", "127.0.0.1, which is not a public"),
    "to a file": (zoo.redirect("file:///etc/passwd"), "url", "only http and https are fetched, not 'file'"),
    "403": (lambda visit: visit.answer(b"no", 403), "status", "HTTP status 403"),
    "404": (lambda visit: visit.answer(picture(20), 404), "status", "HTTP status 404"),
    "429 for ever": (lambda visit: visit.answer(b"", 429, Retry_After="900"), "status", "it asks to wait 900 s"),
    "noai": (lambda visit: visit.answer(picture(21), X_Robots_Tag="noai"), "opt-out", "X-Robots-Tag: noai"),
    "noindex": (lambda visit: visit.answer(picture(21), X_Robots_Tag="noindex"), "opt-out", "noindex"),
    "cut short": (zoo.cut_short(picture(22)[:900]), "connection", "the connection was lost"),
}


@pytest.mark.parametrize("name", NETWORK)
def test_hosts_that_misbehave(name: str, visit: Any, server: Zoo) -> None:
    behaviour, kind, reason = NETWORK[name]
    url = server.add("/animal.jpg", behaviour)
    said = visit(url, **({"deadline_s": 1.0} if kind == "time" else {})).verdict(url)
    assert (said[0], reason in said[1]) == (kind, True), said


@pytest.mark.parametrize(
    ("url", "kind"),
    [("file:///etc/hostname", "url"), ("data:image/png;base64,iVBORw0KGgo=", "url"), ("ftp://zoo.example/a.png", "url"),
     ("http://127.0.0.1/a.png", "address"), ("http://2130706433/a.png", "address"), ("http://[::1]/a", "address"),
     ("http://localhost.invalid/a.png", "address"), ("not a url", "url"), ("http://", "url")],
)  # fmt: skip
def test_results_that_lead_nowhere_good(url: str, kind: str, visit: Any) -> None:
    assert visit(url).verdict(url)[0] == kind


def test_a_file_result_copies_no_local_file(visit: Any, tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(picture(23))
    url = (tmp_path / "private.png").as_uri()
    assert visit(url).verdict(url)[0] == "url"


@pytest.mark.parametrize(
    "behaviour",
    [zoo.after_failures(2, picture(24)), zoo.after_failures(1, picture(24), 429, Retry_After="1")],
    ids=["500 twice", "429 with Retry-After"],
)
def test_hosts_that_recover(behaviour: zoo.Behaviour, visit: Any, server: Zoo) -> None:
    url = server.add("/animal.jpg", behaviour)
    assert visit(url, deadline_s=20.0).verdict(url) == ("accepted", "")


def test_the_same_bytes_twice(visit: Any, server: Zoo) -> None:
    one, two = server.add("/one.jpg", picture(30)), server.add("/two.png", picture(30), host="other.example")
    found = visit(one, two, one)
    assert found.verdict(two) == ("duplicate", f"the same bytes as {one}")
    assert server.paths.count("/one.jpg") == 1


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg": lambda image: encoded(image, "JPEG", quality=60),
    "webp": lambda image: encoded(image, "WEBP", quality=60),
    "half size": lambda image: encoded(image.resize((160, 160), Image.Resampling.LANCZOS)),
    "odd size and jpeg": lambda image: encoded(image.resize((203, 203)), "JPEG", quality=50),
    "avif": lambda image: encoded(image, "AVIF", quality=60),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("better_first", [True, False])
def test_of_copies_the_better_one_stays(how: str, better_first: bool, visit: Any, server: Zoo) -> None:
    image = rgb(31).resize((320, 320), Image.Resampling.LANCZOS)
    big, small = encoded(image), COPIES[how](rgb(31))
    urls = [server.add("/big", big), server.add("/small", small)]
    found = visit(*(urls if better_first else urls[::-1]))
    assert found.verdict(urls[0]) == ("accepted", "")
    kind, reason = found.verdict(urls[1])
    assert kind == "duplicate"
    assert "looks like http://zoo.example/big (320 x 320 px" in reason


def test_pictures_that_differ_stay_apart(visit: Any, server: Zoo) -> None:
    """Also one drawing in two colours, which a hash of shapes cannot tell apart."""
    red, blue = Image.new("RGB", (200, 200), "#c02020"), Image.new("RGB", (200, 200), "#2020c0")
    urls = [server.add(f"/{number}.png", picture(number)) for number in range(40, 60)]
    urls += [server.add("/red.png", encoded(red)), server.add("/blue.png", encoded(blue))]
    assert all(found == ("accepted", "") for found in map(visit(*urls).verdict, urls))


def test_duplicates_can_be_kept(visit: Any, server: Zoo) -> None:
    urls = [server.add("/a", encoded(rgb(31))), server.add("/b", encoded(rgb(31), "JPEG"))]
    found = visit(*urls, duplicate_bits=-1)
    assert [found.verdict(url)[0] for url in urls] == ["accepted", "accepted"]


@pytest.mark.parametrize(
    "path",
    ["/../../../tmp/evil.jpg", "/..%2f..%2fevil.jpg", "/a/..\\..\\evil.jpg", "/" + "n" * 300 + ".jpg", "/%00.jpg"],
)
def test_names_that_climb(path: str, visit: Any, server: Zoo) -> None:
    content = picture(25)
    sent = {path, path.replace("/../../..", ""), path.replace("\\", "%5C"), path.replace("%2f", "%2F")}
    for variant in sent:  # as it stands and as a client cleans it up
        server.add(variant, content, Content_Disposition='attachment; filename="../../../evil.sh"')
    url = f"http://zoo.example{path}"
    found = visit(url)
    assert found.verdict(url) == ("accepted", "")
    assert found.accepted[url]["file"] == f"{found.accepted[url]['sha256']}.{found.accepted[url]['format'].lower()}"


QUERIES = [
    "..",
    "../../etc",
    "/",
    "q" * 300,
    "初音ミク – ünïcode",
    "\"quotes\" 'and' `more`",
    "$(touch x); rm -rf *",
]


@pytest.mark.parametrize("query", QUERIES)
def test_queries_of_every_kind_stay_text(query: str, visit: Any) -> None:
    assert {row["query"] for row in visit(query=query).accepted.values()} == {query}


@pytest.mark.parametrize("query", ["", "q" * 301, "two\nlines"])
def test_queries_that_are_none(query: str) -> None:
    with pytest.raises(ValueError, match=r"at most 300|at least 1|one line"):
        BingSource(kind="bing", query=query, limit=5)


MEMORY = """
import json, resource, sys
from pathlib import Path
from rig import zoo
from sdlora import choices
from sdlora.config.dataset import Dataset
from sdlora.config.sources import BingSource, Scrape
from sdlora.stages.scrape.gather import gather
import sdlora.stages.scrape.gather, PIL.JpegImagePlugin, PIL.PngImagePlugin
out, port, urls = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
choices.SOURCES["bing"] = "rig.zoo:find"
def run(found, folder):
    zoo.RESULTS["x"] = found
    limits = Scrape(max_mib=30.0, deadline_s=30.0, host_rate_per_s=1e4, host_concurrency=16)
    source = BingSource(kind="bing", query="x", limit=50)
    gather(Dataset(sources=(source,), trigger="x", scrape=limits), out / folder, zoo.context_of(port))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = run(urls[:1], "before")
print(json.dumps([before, run(urls, "after")]))
"""


@pytest.mark.workflow
@pytest.mark.parametrize(("animal", "most_mib"), [("endless", 40), ("bomb", 40), ("declared", 40), ("large", 250)])
def test_memory_stays_bounded(animal: str, most_mib: int, server: Zoo, tmp_path: Path) -> None:
    """Eight at once: endless bodies with a cap of 30 MiB, bombs of 243 MB, and allowed pictures of 121 MB decoded."""
    made: dict[str, Callable[[], Behaviour]] = {
        "endless": lambda: zoo.endless,
        "bomb": lambda: zoo.bomb(9_000),
        "declared": lambda: zoo.png_of(20_000, 20_000, b"x\x9c\x03\x00\x00\x00\x00\x01"),
        "large": lambda: zoo.bomb(5_500),
    }
    behaviour = made[animal]()
    urls = [server.add("/good.jpg", picture(1))]
    urls += [server.add(f"/{number}", behaviour) for number in range(8)]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), str(server.port), json.dumps(urls)],
        capture_output=True, text=True, check=False, timeout=300, cwd=ROOT / "tests",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before_mib, after_mib = json.loads(done.stdout.splitlines()[-1])
    print(f"{animal}: peak RSS {before_mib:.0f} -> {after_mib:.0f} MiB")
    assert after_mib - before_mib < most_mib
