"""Time and memory of preparing a set, and of loading it for training, at N and ten times N pictures.

    python -m benchmarks.sets --pictures 500 --out sets.csv
    python -m benchmarks.sets --pictures 10000 --stages fit,flip

Synthetic pictures, gathered from a folder, fitted to 64 px, captioned by tiny BLIP, mirrored, and encoded by the
embedded base's VAE. Each stage runs in a process of its own, which says what it took after its imports. `load` maps the
latents and takes each once, in an order of training; `load, a file each` does so with one file a picture, and `flip a
file each` has each of its files on the disk before the next. Cold: the system was told to forget the files (Linux).
Without `caption` among the stages, all pictures have the same caption.
"""

import argparse
import csv
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
SIDE_PX = 64
LOADS = 3  # cold and warm in turns, of which the median counts
Took = dict[str, float]


def draw(count: int) -> None:
    """`raw/` and `manifest.jsonl` of so many different pictures, and their captions."""
    import numpy as np
    from PIL import Image

    from sdlora import records
    from sdlora.images.pictures import png_bytes

    rows = []
    Path("raw").mkdir(exist_ok=True)
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        content = png_bytes(Image.fromarray(coarse).resize((SIDE_PX * 4 // 3, SIDE_PX)))
        digest = hashlib.sha256(content).hexdigest()
        (Path("raw") / f"{digest}.png").write_bytes(content)
        about = {"id": f"{number:016x}", "name": f"{number}.png", "file": f"{digest}.png", "sha256": digest}
        rows.append({**about, "split": "train", "caption": None})
    records.write_jsonl(Path("manifest.jsonl"), rows)
    captions = [{"id": row["id"], "caption": "captain", "origin": "-", "split": "train"} for row in rows]
    records.write_jsonl(Path("fitted/captions.jsonl"), captions)


def scrape() -> Took:
    """The stage scrape: the pictures lie in a folder."""
    from sdlora.config.dataset import Dataset
    from sdlora.config.sources import FolderSource
    from sdlora.stages.scrape.gather import gather

    for path in Path("raw").iterdir():  # another name for the same bytes: gather writes its own `raw/`
        (Path("folder") / path.name).parent.mkdir(exist_ok=True)
        (Path("folder") / path.name).hardlink_to(path)
    dataset = Dataset(sources=(FolderSource(kind="folder", path="folder"),), trigger="captain", held_out=1)
    return timed(lambda: gather(dataset, Path("gathered")))


def fit() -> Took:
    """The stage fit."""
    from sdlora.config.params import Fit
    from sdlora.stages.fit.fit import fit_dataset

    return timed(lambda: fit_dataset(Fit(size_px=SIDE_PX), Path(), Path("fitted")))


def caption(batch_size: int = 1) -> Took:
    """The stage caption, so many pictures at once: every picture is new to the captioner."""
    from sdlora.config.caption import Caption
    from sdlora.stages.caption.caption import caption_dataset, captioner_of
    from sdlora.stages.caption.recipe import CaptionRecipe

    recipe = CaptionRecipe(
        wildcards={"dataset": "-", "fit": "-"}, caption=Caption(batch_size=batch_size), override=None, overrides=None,
        captioner=str(ROOT / "models/tiny-blip"), captioner_identity="-", captioner_revision=None, trigger="captain",
        threads=1,
    )  # fmt: skip
    return timed(lambda: caption_dataset(recipe, captioner_of(recipe), Path("fitted"), Path("captions")))


def flip() -> Took:
    """The stage flip."""
    from sdlora.stages.flip.flip import flip_dataset

    return timed(lambda: flip_dataset(Path("fitted"), mirror=True, swap_words=True))


def flip_a_file_each() -> Took:
    """`flip`, which has each file on the disk before it writes the next one."""
    from sdlora import records

    before, records.many_files = records.many_files, lambda: nullcontext(records.write_bytes)
    took = flip()
    records.many_files = before
    return took


def encode() -> Took:
    """The stage encode."""
    from sdlora.config.params import Base, Encode
    from sdlora.stages.encode.encode import encode_dataset
    from sdlora.stages.encode.recipe import EncodeRecipe

    base = Base(model=str(ROOT / "models/tiny-sd"), family="sd", size_px=SIDE_PX, captioner="-")
    recipe = EncodeRecipe(wildcards={"base": "tiny"}, encode=Encode(), base=base, base_identity="-", threads=1)
    return timed(lambda: encode_dataset(recipe, Path("fitted")))


def one_more() -> Took:
    """The stage encode where one picture is new."""
    draw(len(list(Path("raw").iterdir())) + 1)
    fit()
    flip()
    return encode()


def load() -> Took:
    """What a training does before its first step, and then with each picture's latents in an epoch."""
    from sdlora.stages.train.dataset import chosen, load_examples

    def epoch() -> None:
        examples = load_examples(Path("fitted"), "tiny")
        for number in range(len(examples)):
            example = examples[chosen(0, number, len(examples))]
            for mean, std in zip(example.mean, example.std, strict=True):
                mean + std

    found: dict[str, list[float]] = {"cold_s": [], "seconds": []}
    for _ in range(LOADS):
        forget(Path("fitted/latents/tiny"))
        found["cold_s"].append(timed(epoch)["seconds"])
        found["seconds"].append(timed(epoch)["seconds"])
    return {name: round(median(values), 3) for name, values in found.items()}


def load_a_file_each() -> Took:
    """`load`, with shards of one picture."""
    from sdlora.stages.encode import shards

    before, shards.LIMIT = shards.LIMIT, 1
    encode()
    shards.LIMIT = before
    return load()


def forget(folder: Path) -> None:
    """Take files out of the system's cache."""
    os.sync()
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def timed(work: Callable[[], object]) -> Took:
    """Seconds and seconds of computing."""
    before, began = time.process_time(), time.perf_counter()
    work()
    return {"seconds": round(time.perf_counter() - began, 3), "cpu_s": round(time.process_time() - before, 3)}


STAGES: dict[str, Callable[[], Took]] = {
    "scrape": scrape, "fit": fit, "caption": caption, "flip": flip, "flip a file each": flip_a_file_each,
    "encode": encode, "encode one more": one_more, "load": load, "load, a file each": load_a_file_each,
}  # fmt: skip


def memory_mib() -> Took:
    """Peak of this process, and what it holds now that is no page of a file, which must be free."""
    state = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "own_mib": round(int(state["RssAnon"].split()[0]) / 1024, 1),
    }


def run_apart(stage: str, work: Path, batch_size: int = 1) -> dict[str, Any]:
    """One stage in a process of its own, in the set's folder."""
    command = [sys.executable, "-m", "benchmarks.sets", "--measure", stage, "--batch-size", str(batch_size)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def ratios(rows: list[dict[str, Any]]) -> list[str]:
    """Ten times as many pictures over so many, a line a stage; and loading shards over loading a file each."""
    found = {(row["stage"], row["pictures"]): row for row in rows}
    few, many = sorted({row["pictures"] for row in rows})
    lines = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        one, ten = found[stage, few], found[stage, many]
        time_, rss = (ten[name] / max(one[name], 1e-3) for name in ("seconds", "peak_rss_mib"))
        lines.append(f"{stage}: {many} over {few} pictures: time {time_:.1f}, peak RSS {rss:.2f}")
    for count in (few, many):
        if not {("load", count), ("load, a file each", count)} <= found.keys():
            continue
        shards, each = found["load", count], found["load, a file each", count]
        warm, cold = (shards[name] / max(each[name], 1e-3) for name in ("seconds", "cold_s"))
        lines.append(f"load, {count} pictures: shards over a file each: warm {warm:.2f}, cold {cold:.2f}")
    return lines


def names(text: str) -> list[str]:
    """Stages, comma between, in the order in which they run: a stage needs what those before it write.

    Raises:
        argparse.ArgumentTypeError: If one is not there.
    """
    found = text.split(",")
    if unknown := [name for name in found if name not in STAGES]:
        raise argparse.ArgumentTypeError(f"no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    return [name for name in STAGES if name in found]


def main() -> None:
    """Measure every stage at two sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500, help="N; each has a mirrored side")
    parser.add_argument("--stages", type=names, default=list(STAGES), help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures captioned at once (default: 1)")
    parser.add_argument("--out", type=Path, help="CSV with one row a stage and size")
    parser.add_argument("--measure", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        took = caption(args.batch_size) if args.measure == "caption" else STAGES[args.measure]()
        print(json.dumps({**took, **memory_mib()}))
        return
    rows = []
    (ROOT / ".sdlora").mkdir(exist_ok=True)  # on the disk that real datasets lie on
    for count in (args.pictures, 10 * args.pictures):
        with tempfile.TemporaryDirectory(dir=ROOT / ".sdlora") as work:
            with chdir(work):
                draw(count)
            for stage in args.stages:
                took = run_apart(stage, Path(work), args.batch_size)
                rows.append({"stage": stage, "pictures": count, **took})
                print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print("\n".join(ratios(rows)))
    if args.out:
        columns = ["stage", "pictures", "seconds", "cpu_s", "cold_s", "peak_rss_mib", "own_mib"]
        with args.out.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, columns, lineterminator="\n", restval="")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
