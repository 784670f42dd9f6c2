"""Time training: `make bench`, or `python -m benchmarks.train --help`.

Every option is timed against the baseline in turns within one process, so that ratios hold even on a
machine whose speed drifts. Writes a CSV file and the tables of docs/benchmarks.md.
"""

import argparse
import platform
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import claims, diffusers_script, measure, page
from benchmarks.rows import Row, changed, rows
from sdlora import records
from sdlora.config.params import Base
from sdlora.config.train import Train
from sdlora.errors import SdloraError
from sdlora.models import architectures
from sdlora.models.loading import quieten
from sdlora.stages.train.loop import Run, optimizer_step

COLUMNS = (
    "base",
    "group",
    "name",
    "batch_size",
    "precision",
    "steps_per_s",
    "ratio",
    "first_step_s",
    "peak_mib",
    "note",
)
PICTURES = 8
BASELINE = Train(optimizer="adamw", rank=16, steps=100_000, checkpoint_every=100_000)
REAL = {"sd15": "sd", "sdxl": "sdxl"}  # real architectures, random weights


@dataclass
class Bench:
    """One base with its pictures and settings."""

    name: str
    base: Base
    folder: Path
    warm: Path  # a dataset of the embedded base
    settings: Train
    args: argparse.Namespace


def _against(baseline: Run, settings: Train, bench: Bench) -> tuple[list[float], list[float], float]:
    """Seconds a step of the baseline and of a run with other settings, in turns, and its seconds to the first step."""
    run, first = measure.start(settings, bench.base, bench.folder)
    works = [lambda step: optimizer_step(baseline, step), lambda step: optimizer_step(run, step)]
    plain, own = measure.alternate(works, bench.args.steps, bench.args.repeats)
    return plain, own, first


def measure_row(bench: Bench, row: Row, baseline: Run) -> dict[str, Any]:
    """One option against the baseline; an option that cannot run here says why."""
    found = dict.fromkeys(COLUMNS, "") | {"base": bench.name, "group": row.group, "name": row.name, "note": row.note}
    if row.note:
        return found
    settings = changed(bench.settings, row.changes)
    found |= {"batch_size": settings.batch_size, "precision": settings.mixed_precision or "no"}
    try:
        plain, own, first = _against(baseline, settings, bench)
        peak = measure.peak_bytes(settings, bench.base, bench.folder, bench.warm)
    except (SdloraError, RuntimeError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0].replace(f"{bench.folder.parent}/", "")  # it lies elsewhere in every run
        return {**found, "note": f"not measured: {reason}"}
    return {
        **found, "steps_per_s": f"{1 / statistics.median(own):.4g}", "ratio": f"{measure.ratio(plain, own):.3f}",
        "first_step_s": f"{first:.2f}", "peak_mib": f"{peak / 2**20:.0f}",
    }  # fmt: skip


def measure_bounds(bench: Bench, baseline: Run) -> tuple[list[dict[str, Any]], list[str]]:
    """The bare lower bound and the uncached step against the loop, and the share of the matmul rate."""
    bare, extra = (
        measure.bare_step(baseline),
        measure.uncached_extra(bench.base, bench.folder, bench.settings.batch_size),
    )

    def uncached(step: int) -> None:
        extra(step)
        optimizer_step(baseline, step)

    works = [lambda step: optimizer_step(baseline, step), bare, uncached]
    loop_s, bare_s, uncached_s = measure.alternate(works, bench.args.steps, bench.args.repeats)
    fixed = dict.fromkeys(COLUMNS, "") | {"base": bench.name, "batch_size": bench.settings.batch_size}
    fixed["precision"] = bench.settings.mixed_precision or "no"

    def row(group: str, name: str, times: list[float]) -> dict[str, Any]:
        speed, against = f"{1 / statistics.median(times):.4g}", f"{measure.ratio(loop_s, times):.3f}"
        return {**fixed, "group": group, "name": name, "steps_per_s": speed, "ratio": against}

    flops, kind = measure.flops_of(bare), _computed_in(bench.settings, baseline)
    ceiling = measure.matmul_rate(kind)
    shares = [flops / statistics.median(times) / ceiling for times in (bare_s, loop_s)]
    facts = [
        f"overhead of the loop over the bare step: {100 * (measure.ratio(loop_s, bare_s) - 1):.1f} %",
        f"{flops / 1e9:.4g} GFLOP a step; a large {str(kind).removeprefix('torch.')} product runs at "
        f"{ceiling / 1e9:.4g} GFLOP/s: the bare step reaches {100 * shares[0]:.1f} % of it, "
        f"the loop {100 * shares[1]:.1f} %",
    ]
    rows = [row("bound", "bare step: forward, backward, optimizer", bare_s)]
    rows.append(row("cache", "VAE and text encoders every step", uncached_s))
    return rows, facts


def _computed_in(settings: Train, run: Run) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.mixed_precision or "", run.model.dtype)


def measure_peer(bench: Bench, baseline: Run) -> list[dict[str, Any]]:
    """diffusers' script against the loop, in turns."""
    found = dict.fromkeys(COLUMNS, "") | {"base": bench.name, "group": "peer", "name": bench.args.diffusers_script.name}
    found |= {"batch_size": bench.settings.batch_size, "precision": bench.settings.mixed_precision or "no"}
    if ("sdxl" in bench.args.diffusers_script.name) != (bench.base.family == "sdxl"):
        return [{**found, "note": "not measured: the script is for another family"}]
    args, script_s, own_s = bench.args, [], []
    try:
        for _ in range(args.repeats):
            script_s.append(
                diffusers_script.seconds_a_step(
                    args.diffusers_script, bench.base, bench.folder, bench.settings, args.script_steps, args.threads
                )
            )
            own_s.append(measure.seconds_a_step(lambda step: optimizer_step(baseline, step), args.script_steps))
    except SdloraError as error:
        return [{**found, "note": " ".join(str(error).split())[-300:]}]
    times = [f"{theirs / own:.2f}" for theirs, own in zip(script_s, own_s, strict=True)]
    return [
        {
            **found, "steps_per_s": f"{1 / statistics.median(script_s):.4g}",
            "ratio": f"{measure.ratio(own_s, script_s):.3f}",
            "note": f"the loop, in turns: {', '.join(times)} times as fast",
        }
    ]  # fmt: skip


def run_base(bench: Bench) -> tuple[list[dict[str, Any]], list[str], dict[str, str]]:
    """All rows of a base, the facts beside them, and what the loss claims measured."""
    baseline, first = measure.start(bench.settings, bench.base, bench.folder)
    results, facts = measure_bounds(bench, baseline)
    for row in rows(bench.settings):
        if bench.args.only and row.group not in bench.args.only:
            continue
        results.append(measure_row(bench, row, baseline))
        print(", ".join(f"{k} {v}" for k, v in results[-1].items() if v != ""), flush=True)
    if bench.args.diffusers_script:
        results += measure_peer(bench, baseline)
    losses = claims.loss_claims(bench.settings, bench.base, bench.folder, bench.args.loss_steps)
    return results, [f"first step after {first:.1f} s", *facts], losses


def _benches(args: argparse.Namespace, work: Path) -> list[Bench]:
    found = []
    warm = measure.write_dataset(work / "warm", measure.TINY, measure.TINY.size_px, 1, args.threads)
    for name in args.bases:
        base = measure.TINY
        if name in REAL:
            dtype = "bf16" if measure.CUDA else "fp32"
            base = architectures.save_random(REAL[name], work / name, dtype, Path(measure.TINY.model) / "tokenizer")
        folder = measure.write_dataset(work / f"{name}-data", base, base.size_px, PICTURES, args.threads)
        precision = args.precision or ("bf16" if base.dtype == "bf16" else "no")
        settings = BASELINE.model_copy(update={"mixed_precision": precision})
        found.append(Bench(name, base, folder, warm, settings, args))
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="time training", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    default = ["tiny", *REAL] if measure.CUDA else ["tiny"]
    parser.add_argument("--bases", nargs="+", choices=["tiny", *REAL], default=default, help="what is trained")
    parser.add_argument("--steps", type=int, default=10, help="steps of one short run")
    parser.add_argument("--repeats", type=int, default=5, help="short runs of each; the median counts")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument(
        "--loss-steps", type=int, default=200, help="steps of the claims about the loss; 0 leaves them out"
    )
    parser.add_argument(
        "--only", nargs="*", default=[], help="groups of rows, such as optimizer batch_size; all if empty"
    )
    parser.add_argument("--precision", choices=["no", "bf16"], help="autocast type; the base's own if left out")
    parser.add_argument("--diffusers-script", type=Path, help="path of diffusers' train_text_to_image_lora(_sdxl).py")
    parser.add_argument("--script-steps", type=int, default=100, help="steps by which the script's two runs differ")
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/train.csv"), help="results")
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"), help="page whose section is written")
    return parser.parse_args()


def main() -> None:
    """Measure, and write CSV and page."""
    args = _arguments()
    quieten()
    torch.set_num_threads(args.threads)
    results: list[dict[str, Any]] = []
    facts: dict[str, list[str]] = {}
    told: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as work:
        try:
            for bench in _benches(args, Path(work)):
                own, facts[bench.name], losses = run_base(bench)
                results += own
                told[bench.name] = claims.measured(results, bench.name, losses)
        except SdloraError as error:
            sys.exit(f"error: {error}")
    records.write_csv(args.csv, COLUMNS, [[row[column] for column in COLUMNS] for row in results])
    device = torch.cuda.get_device_name() if measure.CUDA else f"{platform.machine()} CPU, {args.threads} threads"
    how = f"{device}; torch {torch.__version__}; median of {args.repeats} runs of {args.steps} steps, in turns."
    page.write(args.page, page.section(how, results, facts, told))
    print(f"written: {args.csv}, {args.page}")


if __name__ == "__main__":
    main()
