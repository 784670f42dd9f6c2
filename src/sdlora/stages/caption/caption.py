"""Caption pictures; the trigger comes first, so that 77 tokens never cut it off."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from sdlora import choices, records
from sdlora.errors import DataError, suggest
from sdlora.flow import hashing
from sdlora.flow.recipe import Values
from sdlora.images.pictures import read_rgb
from sdlora.progress import Progress
from sdlora.stages.caption.recipe import CaptionRecipe

MOST_UNKNOWN = 1 / 3  # of the references' words may be missing in training captions before that is told


def leading(trigger: str) -> re.Pattern[str]:
    """Matches a text that begins with the trigger, up to the text's next word: `levi` does not begin `leviathan`."""
    return re.compile(rf"{re.escape(trigger)}(?!\w)[\s,]*", flags=re.IGNORECASE)


def with_trigger(trigger: str, caption: str) -> str:
    """`trigger, caption`, without saying it twice."""
    caption = caption.strip()
    if leading(trigger).match(caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


class Captioner(Protocol):
    """An entry of `choices.CAPTIONERS`, made of the weights' name, their revision, the settings and the threads."""

    def captions(self, pictures: Sequence[Image.Image]) -> list[str]:
        """A caption for each picture, without the trigger; may be empty."""


def captioner_of(recipe: CaptionRecipe) -> Captioner:
    """The one that the settings choose."""
    kind = choices.pick(choices.CAPTIONERS, recipe.caption.by)
    made: Captioner = kind(recipe.captioner, recipe.captioner_revision, recipe.caption, recipe.threads)
    return made


def read_overrides(path: str | None, rows: Sequence[records.Row]) -> dict[str, str]:
    """Captions a user wrote, by picture id.

    Raises:
        DataError: If a row has no caption, names a picture that is not in the dataset or one of several of that name,
            or if a picture has two captions.
    """
    if path is None:
        return {}
    ids = {row["name"]: row["id"] for row in rows} | {row["id"]: row["id"] for row in rows}
    names = Counter(row["name"] for row in rows)
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, row in _rows_of(Path(path)):
        name, problem = row.get("id") or row.get("file"), None
        if not isinstance(name, str):
            problem = "needs id or file, and caption, as texts"
        elif name not in ids:
            problem = f"no picture {name!r}{suggest(name, ids)} (rejected.jsonl has those that were left out)"
        elif not isinstance(row.get("caption"), str):
            problem = "needs id or file, and caption, as texts"
        elif names[name] > 1:
            problem = f"{names[name]} pictures are called {name!r}: say which by id, as manifest.jsonl has it"
        elif ids[name] in lines:
            problem = f"a second caption for {name!r}, which has one in line {lines[ids[name]]}; keep one of them"
        if problem is not None:
            raise DataError(f"{path}:{number}: {problem}")
        lines[ids[str(name)]], found[ids[str(name)]] = number, str(row["caption"])
    return found


def _rows_of(path: Path) -> Iterator[tuple[int, records.Row]]:
    """Line number and object of each line that has one.

    Raises:
        DataError: If the file cannot be read, is not UTF-8, or a line is no JSON object.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start], error.object[error.start]
        where = f"{path}:{before.count(10) + 1}"
        raise DataError(f"{where}: byte {byte:#04x} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"captions_override: cannot read the file {str(path)!r}: {error.strerror}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error}); each line is an object such as "
                f'{{"file": "train/001.png", "caption": "..."}}'
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: a {type(row).__name__}, where an object with file and caption is wanted")
        yield number, row


def caption_dataset(recipe: CaptionRecipe, captioner: Captioner, folder: Path, store: Path) -> list[Path]:
    """Write `captions.jsonl` for a folder of fitted pictures; only new pictures are captioned.

    Args:
        recipe: Settings, trigger (placed first), a user's overrides, identity of captioner and code.
        captioner: What describes a picture.
        folder: Fitted pictures with `fit.jsonl`.
        store: Where captions are remembered by content.

    Returns:
        The files written.
    """
    rows = records.read_jsonl(folder / "fit.jsonl")
    overrides = read_overrides(recipe.override, rows)
    asked = _asked(recipe)
    keys = {row["id"]: _key(folder / row["file"], asked) for row in rows}
    wanted = [row for row in rows if row["id"] not in overrides and not row["caption"]]
    known = {row["id"]: hashing.read_regular(store / f"{keys[row['id']]}.json") for row in wanted}
    new = [row for row in wanted if not isinstance(known[row["id"]], str)]
    progress, size = Progress("caption", len(new)), recipe.caption.batch_size
    for batch in (new[first : first + size] for first in range(0, len(new), size)):
        texts = captioner.captions([read_rgb(folder / row["file"]) for row in batch])
        for row, text in zip(batch, texts, strict=True):
            known[row["id"]] = text
            records.write_json(store / f"{keys[row['id']]}.json", text)
        progress.advance(len(batch))
    came = len(rows) - len(wanted) - len(overrides)
    print(
        f"caption: {len(new)} new, {len(wanted) - len(new)} known, {len(overrides)} of captions_override, "
        f"{came} that came with their pictures",
        flush=True,
    )
    captioned = []
    for row in rows:
        if row["id"] in overrides:
            text, origin = overrides[row["id"]], "override"
        elif row["caption"]:
            text, origin = row["caption"], "source"
        else:
            text, origin = known[row["id"]], recipe.captioner_identity
        captioned.append({"id": row["id"], "caption": text, "origin": origin, "split": row["split"]})
    if recipe.caption.prune_shared_tags is not None:
        left_out = prune(captioned, recipe.caption.prune_shared_tags)
        print(f"caption: left to the trigger: {', '.join(sorted(left_out)) or 'no tag'}", flush=True)
    for tag in leave_out(captioned, recipe.undesired_tags):
        print(f"warning: undesired_tags: no caption has {tag!r}{suggest(tag, _last_words(captioned))}", flush=True)
    for row in captioned:
        row["caption"] = with_trigger(recipe.trigger, row["caption"])
    for warning in warnings(captioned, recipe.trigger):
        print(f"warning: {warning}", flush=True)
    records.write_jsonl(folder / "captions.jsonl", captioned)
    return [folder / "captions.jsonl"]


def prune(rows: Sequence[records.Row], share: float) -> set[str]:
    """Leave out of captions, in place, the tags that at least `share` of the training captions have.

    A LoRA learns as the trigger what its captions do not say: of a character, what never varies. Captions written by
    hand are counted, and stay as they are.

    Args:
        rows: caption (without the trigger), origin and split of each picture.
        share: Of the training captions.

    Returns:
        The tags that were left out.
    """
    learnt = [set(_tags(row["caption"])) for row in rows if row["split"] == "train"]
    counts = Counter(tag for tags in learnt for tag in tags)
    shared = {tag for tag, count in counts.items() if count >= share * len(learnt)}
    _drop(rows, shared.__contains__)
    return shared


def leave_out(rows: Sequence[records.Row], undesired: Sequence[str]) -> list[str]:
    """Leave tags out of captions, in place: of a character, what it always wears, in whatever words it is named.

    A tag goes that is one of `undesired` or ends in one, as `red square glasses` ends in `glasses`, whatever the case.
    Captions written by hand stay as they are.

    Args:
        rows: caption (without the trigger) and origin of each picture.
        undesired: Tags or their last words.

    Returns:
        Those of `undesired` that no caption had.
    """
    ends = {one: f" {one}".lower() for one in undesired}
    dropped = _drop(rows, lambda tag: f" {tag}".lower().endswith((*ends.values(),)))
    return [one for one in undesired if not any(f" {tag}".lower().endswith(ends[one]) for tag in dropped)]


def _drop(rows: Sequence[records.Row], unwanted: Callable[[str], bool]) -> set[str]:
    """Leave tags out of captions that nobody wrote by hand, in place; the tags that there were."""
    dropped: set[str] = set()
    for row in rows:
        if row["origin"] != "override":
            tags = _tags(row["caption"])
            dropped.update(filter(unwanted, tags))
            row["caption"] = ", ".join(tag for tag in tags if tag not in dropped)
    return dropped


def _last_words(rows: Sequence[records.Row]) -> list[str]:
    """Of tags, the most frequent ones: what may have been meant by one that is not there."""
    counts = Counter(tag.rsplit(maxsplit=1)[-1] for row in rows for tag in _tags(row["caption"]))
    return [word for word, _ in counts.most_common(20)]


def _tags(caption: str) -> list[str]:
    return [tag for part in caption.split(",") if (tag := part.strip())]


def warnings(rows: Sequence[records.Row], trigger: str) -> Iterator[str]:
    """What in a dataset's captions keeps a LoRA from learning what its pictures are measured by.

    Args:
        rows: id, caption, origin and split of each picture.
        trigger: Is in every caption, so it says nothing.
    """
    learnt = [row for row in rows if row["split"] == "train"]
    asked = [row for row in rows if row["split"] == "reference"]
    if len(learnt) > 1 and len({row["caption"] for row in learnt}) == 1:
        yield (
            f"all {len(learnt)} training captions are {learnt[0]['caption']!r}: whatever the pictures have in common "
            f"is learnt as that text, and nothing else can be asked for"
        )
    known, wanted = _words(learnt, trigger), _words(asked, trigger)
    unknown = sorted(wanted - known)
    if learnt and len(unknown) > MOST_UNKNOWN * len(wanted):
        origins = " and ".join(sorted({str(row["origin"]) for row in learnt}))
        some = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        yield (
            f"{len(unknown)} of the {len(wanted)} words that the references are drawn with occur in no training "
            f"caption ({some}; training captions by {origins}): what they say is not learnt; caption both in the same "
            f"words"
        )


def _words(rows: Sequence[records.Row], trigger: str) -> set[str]:
    own = set(re.findall(r"\w+", trigger.lower()))
    return {word for row in rows for word in re.findall(r"\w{3,}", str(row["caption"]).lower())} - own


def _asked(recipe: CaptionRecipe) -> Values:
    """What the captioner's answer depends on, beside the picture."""
    said = {"trigger", "override", "overrides", "undesired_tags"}
    asked = {key: value for key, value in recipe.identity().items() if key not in said}
    return {**asked, "caption": {key: value for key, value in asked["caption"].items() if key != "prune_shared_tags"}}


def _key(picture: Path, asked: Values) -> str:
    """A caption's key: the picture and everything that the captioner's answer depends on."""
    return hashing.sha256_text(hashing.sha256_of(picture) + records.canonical_json(asked))
