"""A dataset on the hub that wants to look into the network, at files beside it, or to end the program."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow.parquet as pq
from PIL import Image

from hostile import Inside, attack
from sdlora.config.sources import HubSource
from sdlora.errors import SdloraError
from sdlora.stages.scrape import hub
from sdlora.stages.scrape.source import Candidate, ScrapeContext

Features = datasets.Features
STRING, BINARY = datasets.Value("string"), datasets.Value("binary")


def picture(colour: str = "red", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, kind)
    return buffer.getvalue()


SECRET = picture("#123456")


def read(folder: Path, **options: Any) -> list[Candidate]:
    """What the source finds in a copy."""
    source = HubSource.model_validate({"kind": "hub", "repository": "some/body", "local": str(folder), **options})
    return list(hub.find(source, ScrapeContext()))


def write(folder: Path, columns: dict[str, list[Any]], features: dict[str, Any], card: str = "") -> Path:
    """A parquet file and a card."""
    folder.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=Features(features)).data.table
    # not by to_parquet, which would fetch what the rows name and put it in
    pq.write_table(table.replace_schema_metadata(Features(features).arrow_schema.metadata), folder / "train.parquet")
    if card:
        (folder / "README.md").write_text(f"---\n{card}\n---\n", encoding="utf-8")
    return folder


# -- columns ---------------------------------------------------------------------------------------------------------
def _at(url: str) -> dict[str, Any]:
    return {"bytes": None, "path": url}


COLUMNS: dict[str, Callable[[], Any]] = {
    "a second picture": datasets.Image,
    "a list of pictures": lambda: datasets.List(datasets.Image()),
    "a picture in a struct": lambda: {"inner": datasets.Image()},
    "a sequence of structs of pictures": lambda: datasets.List({"inner": datasets.Image()}),
}


DECODED: list[str] = []
CANARY = b"CANARY of a decoder that nobody chose"


def _accept(prefix: bytes) -> bool:
    DECODED.extend(["a decoder"] if prefix.startswith(CANARY[:6]) else [])
    return False


Image.register_open("CANARY", Image.Image, _accept)


@contextmanager
def online() -> Iterator[None]:
    """The hub's client as it is outside of tests: it may ask. Nothing but loopback is named."""
    modules = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _column(name: str, cell: Any) -> Callable[[Path], str | None]:
    def attempt(folder: Path) -> str | None:
        DECODED.clear()
        with Inside() as inside, online():
            cells = {"a second picture": cell(inside), "a list of pictures": [cell(inside)],
                     "a picture in a struct": {"inner": cell(inside)},
                     "a sequence of structs of pictures": [{"inner": cell(inside)}]}  # fmt: skip
            write(
                folder,
                {"image": [{"bytes": picture(), "path": None}], "other": [cells[name]], "text": ["x"]},
                {"image": datasets.Image(), "other": COLUMNS[name](), "text": STRING},
            )
            problem = ""
            try:
                found = read(folder, image_column="image")
                problem = "" if [one.content for one in found] == [picture()] else "the picture was not read"
            except SdloraError as error:
                problem = f"the picture beside it was lost: {error}"
            return "; ".join(filter(None, [*map(str, inside.visits[:2]), *DECODED[:1], problem])) or None

    return attempt


for _name in COLUMNS:
    attack("hub", f"{_name} that is a URL")(_column(_name, lambda inside: _at(inside.url())))
    attack("hub", f"{_name} that no decoder should see")(_column(_name, lambda inside: {"bytes": CANARY, "path": None}))


@attack("hub", "a caption that is a picture at a URL")
def _caption_column(folder: Path) -> str | None:
    with Inside() as inside, online():
        cells = {"image": [{"bytes": picture(), "path": None}], "text": [_at(inside.url())]}
        write(folder, cells, {"image": datasets.Image(), "text": datasets.Image()})
        read(folder, image_column="image")
        return f"requests: {inside.visits}" if inside.visits else None


@attack("hub", "bytes and path that are pictures themselves")
def _struct(folder: Path) -> str | None:
    with Inside() as inside, online():
        cells = {"image": [{"bytes": _at(inside.url()), "path": "x"}], "text": ["x"]}
        write(folder, cells, {"image": {"bytes": datasets.Image(), "path": STRING}, "text": STRING})
        try:
            read(folder)
        finally:
            visits = list(inside.visits)
        return f"requests: {visits}" if visits else None


@attack("hub", "an image column at a URL")
def _own_column(folder: Path) -> str | None:
    with Inside() as inside, online():
        write(folder, {"image": [_at(inside.url())], "text": ["x"]}, {"image": datasets.Image(), "text": STRING})
        found = read(folder)
        return f"requests: {inside.visits}" if inside.visits or found[0].content else None


# -- patterns of the card --------------------------------------------------------------------------------------------
def _card(pattern: Callable[[Path, Inside], str], form: str) -> Callable[[Path], str | None]:
    def attempt(folder: Path) -> str | None:
        outside, copy = folder / "outside", folder / "copy"
        features = {"image": datasets.Image(), "text": STRING}
        write(outside, {"image": [{"bytes": SECRET, "path": None}], "text": ["s"]}, features)
        write(copy, {"image": [{"bytes": picture(), "path": None}], "text": ["x"]}, features)
        with Inside() as inside, online():
            configs = "configs:\n- config_name: default\n" + form.format(pattern(outside, inside))
            (copy / "README.md").write_text(f"---\n{configs}\n---\n", encoding="utf-8")
            try:
                found = read(copy)
            finally:
                visits = list(inside.visits)
        if visits:
            return f"requests: {visits}"
        return "a file outside was read" if SECRET in [one.content for one in found] else None

    return attempt


PATTERNS: dict[str, Callable[[Path, Inside], str]] = {
    "a URL": lambda outside, inside: inside.url("x.parquet"),
    "an absolute path": lambda outside, inside: str(outside / "*.parquet"),
    "a path that climbs": lambda outside, inside: "../outside/*.parquet",
    "a file URL": lambda outside, inside: (outside / "train.parquet").as_uri(),
    "a chained URL": lambda outside, inside: f"zip://x.parquet::{inside.url('x.zip')}",
}
FORMS = {
    "": '  data_files: "{}"\n',
    " in a list": '  data_files:\n  - "{}"\n',
    " of a split": '  data_files:\n  - split: train\n    path: "{}"\n',
    " among a split's": '  data_files:\n  - split: train\n    path: ["train.parquet", "{}"]\n',
}
for _name, _pattern in PATTERNS.items():
    for _suffix, _form in FORMS.items():
        attack("hub", f"data_files is {_name}{_suffix}")(_card(_pattern, _form))
attack("hub", "data_dir climbs")(_card(lambda outside, inside: "../outside", '  data_dir: "{}"\n'))


@attack("hub", "patterns in .huggingface.yaml")
def _standalone(folder: Path) -> str | None:
    outside, copy = folder / "outside", folder / "copy"
    features = {"image": datasets.Image(), "text": STRING}
    for place, content in ((outside, SECRET), (copy, picture())):
        write(place, {"image": [{"bytes": content, "path": None}], "text": ["s"]}, features)
    (copy / ".huggingface.yaml").write_text(
        f'configs:\n- config_name: default\n  data_files: "{outside}/*.parquet"\n', encoding="utf-8"
    )
    return "a file outside was read" if SECRET in [one.content for one in read(copy)] else None


@attack("hub", "a link to a table outside")
def _link(folder: Path) -> str | None:
    features = {"image": datasets.Image(), "text": STRING}
    write(folder / "outside", {"image": [{"bytes": SECRET, "path": None}], "text": ["s"]}, features)
    (folder / "copy").mkdir()
    (folder / "copy/train.parquet").symlink_to(folder / "outside/train.parquet")
    return "a file outside was read" if SECRET in [one.content for one in read(folder / "copy")] else None


@attack("hub", "a picture that is a link out of the folder")
def _picture_link(folder: Path) -> str | None:
    (folder / "secret.png").write_bytes(SECRET)
    write(folder / "copy", {"image": [_at("in.png")], "text": ["x"]}, {"image": {"bytes": BINARY, "path": STRING},
                                                                     "text": STRING})  # fmt: skip
    (folder / "copy/in.png").symlink_to(folder / "secret.png")
    return "a file outside was read" if SECRET in [one.content for one in read(folder / "copy")] else None


# -- saved datasets --------------------------------------------------------------------------------------------------
@attack("hub", "state.json names a table outside")
def _state(folder: Path) -> str | None:
    features = Features({"image": datasets.Image(), "text": STRING})
    for name, content in (("outside", SECRET), ("copy", picture())):
        rows = datasets.Dataset.from_dict({"image": [{"bytes": content, "path": None}], "text": ["x"]}, features)
        rows.save_to_disk(folder / name)
    through = []
    for name in ("../outside/data-00000-of-00001.arrow", str(folder / "outside/data-00000-of-00001.arrow")):
        path = folder / "copy/state.json"
        state = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps({**state, "_data_files": [{"filename": name}]}), encoding="utf-8")
        try:
            through += [one.content for one in read(folder / "copy") if one.content == SECRET]
        except Exception as error:
            if type(error).__name__ != "DataError":
                raise
    return f"{len(through)} files outside were read" if through else None


@attack("hub", "dataset_dict.json names a split outside")
def _splits(folder: Path) -> str | None:
    features = Features({"image": datasets.Image(), "text": STRING})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": SECRET, "path": None}], "text": ["x"]}, features)
    rows.save_to_disk(folder / "outside")
    (folder / "copy").mkdir()
    (folder / "copy/dataset_dict.json").write_text('{"splits": ["../outside"]}', encoding="utf-8")
    found = read(folder / "copy", split="../outside")
    return "a split outside was read" if SECRET in [one.content for one in found] else None


# -- texts that end the reader ---------------------------------------------------------------------------------------
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CARDS = {
    "YAML that is none": "license: [unclosed",
    "YAML with tabs and binary": "a:\t\x01b\n\t- c",
    "an alias bomb": BOMB + "license: *i",
    "YAML nested 5,000 deep": "license: " + "[" * 5000 + "]" * 5000,
    "a licence that is an object": "license: {a: {b: c}}",
    "YAML that builds an object": "license: !!python/object/apply:os.system ['touch owned']",
    "a card that is a list": "- a\n- b",
}
for _name, _text in CARDS.items():

    @attack("hub", _name)
    def _bad_card(folder: Path, text: str = _text) -> str | None:
        cells = {"image": [{"bytes": picture(), "path": None}], "text": ["x"]}
        write(folder, cells, {"image": datasets.Image(), "text": STRING}, text)
        found = read(folder)
        return None if len(found[0].licence or "") < 10_000 else "a licence of more than 10,000 characters"


@attack("hub", "a card that is not UTF-8")
def _latin(folder: Path) -> str | None:
    write(folder, {"image": [_at("x")], "text": ["x"]}, {"image": datasets.Image(), "text": STRING})
    (folder / "README.md").write_bytes(b"---\nlicense: caf\xe9\n---\n")
    read(folder)
    return None


for _file in ("dataset_infos.json", "state.json", "metadata.jsonl"):

    @attack("hub", f"{_file} nested 5,000 deep")
    def _deep(folder: Path, file: str = _file) -> str | None:
        write(folder, {"image": [_at("x")], "text": ["x"]}, {"image": datasets.Image(), "text": STRING})
        if file == "metadata.jsonl":
            (folder / "train.parquet").unlink()
            (folder / "a.png").write_bytes(picture())
        deep = "[" * 5000 + "]" * 5000
        (folder / file).write_text(f'{{"file_name": "a.png", "text": {deep}}}', encoding="utf-8")
        read(folder)
        return None


@attack("hub", "a terminal's escapes in captions, licence and columns")
def _escapes(folder: Path) -> str | None:
    cells = {"image": [{"bytes": picture(), "path": None}], "text": ["a \x1b]0;owned\x07 cat\x9b2J"]}
    write(folder, cells, {"image": datasets.Image(), "text": STRING}, 'license: "x\\e[2J"')
    (one,) = read(folder)
    left = [text for text in (one.caption, one.licence) if text and not text.isprintable()]
    return f"escapes: {left!r}" if left else None
