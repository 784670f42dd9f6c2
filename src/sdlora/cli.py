"""The command `sdlora`: everything that is no job of the DAG."""

import argparse
import csv
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from sdlora.config.load import load
from sdlora.config.params import Params
from sdlora.errors import ParamsError, SdloraError, suggest


def main(words: list[str] | None = None) -> None:
    """Run a command; a mistake is a sentence on stderr and exit code 1, Ctrl-C one and 130, as in a shell.

    What nobody reads to its end ends with 141, as a shell has it: work may have been cut off.
    """
    words = sys.argv[1:] if words is None else words
    own, further = words, []
    if words[:1] == ["search"] and "--" in words:  # what follows is Snakemake's
        own, further = words[: words.index("--")], words[words.index("--") + 1 :]
    args = _parser().parse_args(own, argparse.Namespace(snakemake=further))
    try:
        args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt as stopped:
        print(str(stopped) or "stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # who reads it, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except SdloraError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is None:  # not of a file
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sdlora", description="Commands beside `snakemake` and `dvc`.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    accept = command("accept", _accept, "keep a version's results after an update of sdlora or of a package")
    accept.add_argument("versions", nargs="+", metavar="VERSION")
    accept.add_argument("--yes", action="store_true", help="do not ask")
    command("check", _check, "report the mistakes in params.yaml and studies.yaml")
    compare = command("compare", _compare, "compare two versions, or one and `base`, at their chosen steps")
    compare.add_argument("one", metavar="VERSION")
    compare.add_argument("other", metavar="VERSION")
    command("docs", _docs, "print docs/params.md: every setting, from the schema")
    command("doctor", _doctor, "say what is installed and what the GPU can do: Python, torch, the browser, DVC, disk")
    preflight = command("preflight", _preflight, "predict the memory of a version's training, phase by phase")
    preflight.add_argument("version", metavar="VERSION")
    preflight.add_argument("--device", choices=("cpu", "cuda"), help="where it would train (default: this machine's)")
    alone = preflight.add_mutually_exclusive_group()
    alone.add_argument("--ram", action="store_true", help="print only the MiB of RAM that its job asks a cluster for")
    alone.add_argument("--drawing-ram", action="store_true", help="the same for the jobs that draw its pictures")
    alone.add_argument("--encoding-ram", action="store_true", help="the same for the job that encodes its pictures")
    provenance = command("provenance", _provenance, "write what a version was made from: an RO-Crate in its folder")
    provenance.add_argument("version", metavar="VERSION")
    provenance.add_argument(
        "--croissant", action="store_true", help="write its pictures and captions as Croissant, too"
    )
    command("runs", _runs, "write results/report/runs.html: what ran when, for how long, and on what")
    _add_search(command("search", _search, "search for better settings of a version"))
    versions = command("versions", _versions, "print the table of all versions as Markdown")
    versions.add_argument("table", type=Path, nargs="?", default=Path("results/report/versions.csv"))
    return parser


def _add_search(search: argparse.ArgumentParser) -> None:
    search.usage = "sdlora search NAME [--like VERSION --set KEY=VALUES ...] [options] [-- SNAKEMAKE'S OPTIONS]"
    search.epilog = (
        "Values: 8,16,32 or 1e-5..1e-3:log or 100..900:step=100; a single value holds for all trials. The study is in "
        "searches/NAME, the page is results/searches/NAME/index.html. After a stop or kill, `sdlora search NAME` "
        "resumes; repeat --trials, --at-once and what follows --. "
        "After --: `--cores 4`, or `--workflow-profile profiles/slurm`. More: docs/scale.md."
    )
    search.add_argument("name", metavar="NAME")
    search.add_argument("--like", metavar="VERSION", help="the version whose settings are searched")
    search.add_argument(
        "--set", action="append", metavar="KEY=VALUES", help="the values of a key, such as train.rank=8,16"
    )
    search.add_argument(
        "--by",
        metavar="METRIC",
        help="metric that ranks trials (default: the version's evaluate.choose_by, if that is one)",
    )
    search.add_argument("--grid", action="store_true", default=None, help="every combination of lists, instead of TPE")
    search.add_argument(
        "--trials", type=_positive, metavar="N", help="trials in total (default: 20, or the whole grid)"
    )
    search.add_argument(
        "--at-once", type=_positive, default=1, metavar="N", help="trials made at the same time, as on a cluster"
    )
    search.add_argument(
        "--prune-at", type=_steps, metavar="STEPS",
        help="checkpoints at which a hopeless trial is given up, such as 300,600, or none (default: those "
        "nearest to a third and two thirds of the shortest training)",
    )  # fmt: skip
    search.add_argument("--startup", type=_positive, metavar="N", help="trials before TPE proposes (default: 5)")
    search.add_argument("--seed", type=_whole, metavar="N", help="seed of the proposals (default: 42)")
    search.add_argument(
        "--leave-out", type=int, action="append", default=[], metavar="N", help="leave out trial N, which failed"
    )


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _steps(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(sorted({_positive(one) for one in text.split(",")}))


def _search(args: argparse.Namespace) -> None:
    from sdlora.search.run import Asked, run  # imports Optuna

    settings: dict[str, str] = {}
    for one in args.set or ():
        key, equals, values = one.partition("=")
        if not equals or key in settings:
            raise ParamsError(f"--set {one}: {'the key is set twice' if equals else 'write KEY=VALUES'}")
        settings[key] = values
    fields = ("like", "by", "grid", "seed", "startup", "prune_at")
    study = {**{field: getattr(args, field) for field in fields}, "settings": settings or None}
    run(Asked(args.name, study, args.trials, args.at_once, tuple(args.leave_out), tuple(args.snakemake)))


def _accept(args: argparse.Namespace) -> None:
    from sdlora.flow import accept

    accept.run(args.versions, args.yes)


def _check(args: argparse.Namespace) -> None:
    from sdlora.flow import plan

    plan.jobs(load(Path("params.yaml"), studies=True))  # versions that do not fit beside each other show there


def _compare(args: argparse.Namespace) -> None:
    from sdlora.flow import comparing
    from sdlora.flow.inputs import VOTES
    from sdlora.stages.evaluate.compare import BASE, compare
    from sdlora.stages.report.page import write_comparison
    from sdlora.stages.report.votes import read_votes

    params = load(Path("params.yaml"), studies=True)
    names = [name for name in dict.fromkeys((args.one, args.other)) if name != BASE]
    for name in names:
        if name not in params.versions:
            raise ParamsError(f"params.yaml has no version {name!r}{suggest(name, [*params.versions, BASE])}")
    recipe, results = comparing.recipe_of(params, args.one, args.other), Path("results")
    _note_stale(params, names)
    out, _ = recipe.outputs
    trainings = {name: [results / training for training in own] for name, own in recipe.trainings.items()}
    compare(results / args.one, results / args.other, recipe.bootstrap_samples, out, trainings)
    sets = (recipe.references, recipe.datasets)
    page = write_comparison(out, recipe.versions, results, *sets, recipe.folders, read_votes(VOTES))
    print(out.read_text("utf-8"), end="")
    print(f"page: {page}", file=sys.stderr)


def _note_stale(params: Params, names: Iterable[str]) -> None:
    """Say which results, of some versions' trainings, are not those of the settings that stand beside them."""
    from sdlora.flow import freshness, plan
    from sdlora.stages.evaluate.recipe import EvaluateRecipe

    made = {Path(EvaluateRecipe.made_pattern().format(version=one)): one for n in names for one in params.trainings(n)}
    for path in freshness.stale([*made], plan.jobs(params)):
        print(
            f"note: results/{made[path]} is not what params.yaml, its data, the code and the packages make now: "
            f"`snakemake results/{made[path]}/metrics.csv` does",
            file=sys.stderr,
        )


def _docs(args: argparse.Namespace) -> None:
    from sdlora.config.docs import reference_page

    print(reference_page(), end="")


def _preflight(args: argparse.Namespace) -> None:
    params = load(Path("params.yaml"), studies=True)
    if args.version not in params.versions:
        raise ParamsError(f"there is no version {args.version!r}{suggest(args.version, params.versions)}")
    if params.versions[args.version].lora is not None and not (args.drawing_ram or args.encoding_ram):
        raise ParamsError(f"version {args.version} names a LoRA from elsewhere: there is no training to predict")
    jobs = {"--ram": "a training", "--drawing-ram": "drawing", "--encoding-ram": "encoding"}
    asked = [option for option in jobs if getattr(args, option.lstrip("-").replace("-", "_"))]
    if args.device and asked:
        raise ParamsError(
            f"{asked[0]} is what {jobs[asked[0]]} asks a cluster for, wherever it runs: leave --device out"
        )
    if asked:
        from sdlora.memory import ram  # imports torch

        of = {"--ram": ram.training_mib, "--drawing-ram": ram.drawing_mib, "--encoding-ram": ram.encoding_mib}
        print(of[asked[0]](params, args.version))
        return
    from sdlora.memory import preflight  # imports torch

    preflight.show(params, args.version, args.device)


def _provenance(args: argparse.Namespace) -> None:
    from sdlora.flow import provenance

    provenance.run(args.version, args.croissant)


def _runs(args: argparse.Namespace) -> None:
    from sdlora.flow import runs

    for path in runs.write(Path("results/report")):
        print(path)


def _versions(args: argparse.Namespace) -> None:
    from sdlora import records
    from sdlora.stages.report.versions import markdown

    if not args.table.is_file():
        raise ParamsError(f"there is no table {args.table}; `snakemake results/report/index.html` makes it")
    try:
        print(markdown(records.read_csv(args.table)), end="")
    except (csv.Error, IndexError, KeyError, ValueError):
        raise ParamsError(
            f"{args.table}: this is no table of all versions, as results/report/versions.csv is"
        ) from None


def _doctor(args: argparse.Namespace) -> None:
    for name, found in facts():
        print(f"{name:<10} {found}")


def facts() -> Iterator[tuple[str, str]]:
    """What a run depends on and a bug report needs."""
    yield "python", f"{platform.python_version()} at {sys.executable}"
    yield "system", f"{platform.system()} {platform.machine()}"
    yield "dvc", _dvc()
    for name in ("sdlora", "snakemake", "torch", "diffusers", "transformers", "peft", "bitsandbytes"):
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"
    yield "device", _device()
    yield "card", _card()
    for name in ("git", "chromium", "chromedriver"):
        yield name, shutil.which(name) or "not found"
    free = shutil.disk_usage(".").free / 2**30
    yield "disk", f"{free:.1f} GiB are free here"


def _dvc() -> str:
    """Its version, or what is missing without it: nothing but its own commands."""
    there = importlib.util.find_spec("dvc") is not None
    if there and shutil.which("dvc"):
        return metadata.version("dvc")
    why = "installed, but no command `dvc` is on the PATH" if there else "not installed"
    return f"{why}: `dvc repro`, `exp`, `push`, `pull` and `checkout` are missing, and nothing else needs it"


def _card() -> str:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    from sdlora import gpu

    if platform.system() == "Darwin":
        return "a Mac's GPU is not used: bases train in fp32 or bf16 on the CPU"
    return gpu.advice(gpu.found(), torch.version.cuda, gpu.driver_version())


def _device() -> str:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return f"{torch.cuda.get_device_name()}, capability {major}.{minor}, CUDA {torch.version.cuda}"
    built = f"torch was built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
    return f"CPU, {torch.get_num_threads()} threads ({built})"
