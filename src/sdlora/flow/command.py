"""The command line that every stage's script has: one recipe, one record."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TypeVar

from sdlora import gpu
from sdlora.errors import DataError, ParamsError, SdloraError, suggest
from sdlora.flow import cards, foreseen, freshness
from sdlora.flow.code import CODE_MEMORY, PACKAGE, Code
from sdlora.flow.makers import package_version
from sdlora.flow.recipe import Recipe

# What is wrong with the machine, not with the program.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
#: Where a stage does not know better what takes less memory.
LESS_MEMORY = (
    "other programs and jobs may take some of it: close them, or run fewer at once; where a GPU is full, "
    "CUDA_VISIBLE_DEVICES= hides it, and the job computes in RAM"
)
#: Of what Snakemake says: that it has no records of its own. Ours tell what is fresh.
NO_NEWS = ("provenance/metadata", "Missing metadata for file")
PROFILES = Path("profiles")  # where Snakemake looks for a workflow's own
Asked = TypeVar("Asked", bound=Recipe)


def run(kind: type[Asked], work: Callable[..., Iterable[Path]], **arguments: type) -> None:
    """Read the recipe, do the work, record what made its files.

    Args:
        kind: The stage's recipe.
        work: Called with the recipe, and with the options by name; returns the files it wrote.
        arguments: Options of this run alone, name and type: no file may depend on one.
    """
    parser = argparse.ArgumentParser(description=kind.__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="what is to be done, JSON: .sdlora/recipes/...")
    for name, option in arguments.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=option, required=True)
    args = parser.parse_args()
    options = {name: getattr(args, name) for name in arguments}
    try:
        recipe = _read(kind, args.recipe)
        check_code(recipe, Path(sys.argv[0]))
        if recipe.cards:
            cards.take(recipe.cards)
            foreseen.check_machine(recipe)  # on a cluster nobody has
            if why := gpu.unused():
                print(f"note: computing on the CPU: {why}", flush=True)
        inputs = freshness.inputs_of(recipe)
        with gpu.told_when_it_fails(lambda: LESS_MEMORY) if recipe.cards else nullcontext():
            outputs = list(work(recipe, **options))
        check_inputs(recipe, inputs)
        freshness.write_made(recipe, outputs)
    except SdloraError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        sys.exit(
            f"error: {error.filename or args.recipe}: {error.strerror}; what was finished is kept, so mend that and "
            f"run the same command again"
        )


def _read(kind: type[Asked], path: Path) -> Asked:
    try:
        return kind.read(path)
    except ValueError as error:
        raise DataError(f"{path}: no recipe of the stage {kind.stage}: {error}") from None


def run_code_of(source: str) -> None:
    """Have the scripts that this process starts import the code that the recipes hash, whatever is installed."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([source, *([before] if before else [])])


def check_options(words: Sequence[str]) -> None:
    """Refuse what would look as if it had worked.

    Args:
        words: What Snakemake was called with.

    Raises:
        DataError: For `--touch`, which marks results as made by the settings of today.
    """
    if any(_says_touch(word) for word in words):
        raise DataError(
            "--touch would call results fresh that other settings or other code made; here, content tells what is "
            "fresh, not a file's time. To keep results after an update of sdlora or of a package, say "
            "`sdlora accept VERSION`"
        )


def _says_touch(word: str) -> bool:
    """Whether a word is `--touch` to Snakemake, whose parser takes its beginning and `-nt`, too."""
    flags = word[1:] if word.startswith("-") else ""
    return (len(word) >= len("--to") and "--touch".startswith(word)) or ("t" in flags and {*flags} <= {*"Fknpt"})


def asks_for_studies(words: Sequence[str]) -> bool:
    """Whether a command line names studies, one of their versions, or a job of a dataset, which may be a study's alone.

    Planning all of them takes half a second. A cluster's job is named by its wildcards: fit:dataset=a,fit=pad-edge-64.
    """
    return any(name in word for word in words for name in ("studies", "study-", ",fit="))


def runs_here(words: Sequence[str]) -> bool:
    """Whether Snakemake, called with `words` in this folder, starts its jobs on this machine: profiles count.

    Raises:
        ParamsError: As `parsed`.
    """
    return parsed(words).executor in (None, "local", "dryrun")


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """What Snakemake reads from its command line in this folder, profiles included.

    Raises:
        ParamsError: If it would refuse the words, by what it would say; if a workflow profile is not there, without
            which it goes on in silence, on this machine.
    """
    from snakemake.cli import parse_args
    from snakemake.exceptions import CliException

    said = StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):  # also of which profile it uses
            args: argparse.Namespace = parse_args([*words])[1]
    except SystemExit as ended:
        if not ended.code:  # -h, --version
            raise ParamsError("Snakemake's options: with these it would make nothing") from None
        raise ParamsError(f"Snakemake's options: {said.getvalue().strip().rpartition(': error: ')[2]}") from None
    except CliException as error:
        raise ParamsError(f"Snakemake's options: {error}") from None
    profile = args.workflow_profile
    if profile not in (None, "none") and not any((folder / profile).exists() for folder in (Path(), PROFILES)):
        known = [str(path) for path in sorted(PROFILES.iterdir())] if PROFILES.is_dir() else []
        raise ParamsError(f"Snakemake's options: --workflow-profile: there is no {profile}{suggest(profile, known)}")
    return args


def unknown_side(file: str, known: Collection[str]) -> str:
    """The side of a comparison's file, `<one>-vs-<other>.html`, that is no version: a name may have `-vs-` in it, too.

    Raises:
        DataError: If the file is no comparison's.
    """
    words = Path(file).stem.split("-vs-")
    sides = [("-vs-".join(words[:place]), "-vs-".join(words[place:])) for place in range(1, len(words))]
    if not sides or Path(file).suffix not in (".csv", ".html"):
        raise DataError(f"results/compare/{file}: a comparison is called <version>-vs-<version>.html, or .csv")
    unknown = [other if one in known else one for one, other in sides if {one, other} & {*known}]
    return min(unknown, key=len, default=sides[0][0])


def check_code(recipe: Recipe, script: Path) -> None:
    """Nothing may be recorded under the hash of other code, or under other packages, than ran.

    Raises:
        DataError: If this process has other code or packages than those that the recipe names.
    """
    if recipe.code is None:  # what came from the web is pinned, whatever the code
        return
    found = Code(CODE_MEMORY).reach(script, recipe.entries)
    if found.identity != recipe.code:
        raise DataError(
            f"the code of {recipe.stage} below {PACKAGE} is not the code that this run was planned with: "
            f"it was edited meanwhile, or it belongs to another checkout; run the same command again"
        )
    now = {name: package_version(name) for name in recipe.software}
    if changed := [
        f"{name} was {recipe.software[name]} and is {now[name]}" for name in now if now[name] != recipe.software[name]
    ]:
        raise DataError(
            f"packages of {recipe.stage} are not those that this run was planned with: {', '.join(changed)}; run the "
            f"same command again"
        )


def check_inputs(recipe: Recipe, inputs: Mapping[str, str]) -> None:
    """Nothing may be recorded as made from what was not there yet when the work began.

    A job may go on after its Snakemake was killed, while another run, or a checkout, changes what it reads.

    Raises:
        DataError: If an input is another one now than `inputs`, each one's identity at the beginning, says.
    """
    now = freshness.inputs_of(recipe)
    if changed := [name for name, identity in inputs.items() if now[name] != identity]:
        raise DataError(
            f"{recipe.made.parent.parent}: while {recipe.stage} was at work, {', '.join(changed)} changed, so what it "
            f"made may be of the files before; run the same command again"
        )
