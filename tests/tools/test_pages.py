"""The commands that pages show exist: each is read by its own program's parser."""

import re
import shlex
from collections.abc import Iterator
from contextlib import chdir

import pytest
from helpers import ROOT

from sdlora import cli
from sdlora.errors import ParamsError, SdloraError
from sdlora.flow import command

pytestmark = pytest.mark.workflow  # Snakemake's plugin for Slurm asks where `sacct` is
PAGES = ("docs/scale.md", "docs/reproducibility.md")
PROGRAMS = ("sdlora", "snakemake", "dvc", "make")
RULES = {
    name
    for file in (ROOT / "workflow/rules").glob("*.smk")
    for name in re.findall(r"^rule (\w+):", file.read_text(), re.M)
}
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))


def shown(text: str) -> Iterator[str]:
    """The command lines in a page's indented blocks: those behind `$`, or all of a block that has no output."""
    for block in re.findall(r"(?:^    .*\n)+", text.replace("\\\n", " "), re.M):
        lines = [line[4:] for line in block.splitlines()]
        marked = [line[2:] for line in lines if line.startswith("$ ")]
        yield from marked or lines


def calls(line: str) -> Iterator[list[str]]:
    """What a shell would start of a line: the words of each program that is known here."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            if words and words[0] in PROGRAMS:
                yield words
            words = []
        elif words or word != "time":
            words.append(word)


def check(words: list[str]) -> None:
    """Have its program's own parser read a command.

    Raises:
        SystemExit: If it does not know an option or a command.
        SdloraError: If Snakemake or DVC does not.
        AssertionError: If a rule or a target of make is none.
    """
    program, own, further = words[0], words[1:], []
    if program == "sdlora":
        if "--" in own:
            own, further = own[: own.index("--")], own[own.index("--") + 1 :]
        cli._parser().parse_args(own)
    elif program == "dvc":
        from dvc.cli import DvcParserError
        from dvc.cli.parser import get_main_parser

        try:
            get_main_parser().parse_args(own)
        except DvcParserError:
            raise ParamsError("dvc's options") from None
    elif program == "make":
        assert {word for word in own if "=" not in word} <= TARGETS
    if (program == "snakemake" and own != ["--version"]) or further:
        asked = command.parsed(own if program == "snakemake" else further)
        assert {*asked.set_resources} <= RULES


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_exists(page: str) -> None:
    found = [words for line in shown((ROOT / page).read_text("utf-8")) for words in calls(line)]
    assert len(found) > 10 and {"sdlora", "snakemake", "dvc"} <= {words[0] for words in found}
    with chdir(ROOT):
        for words in found:
            try:
                check(words)
            except (SystemExit, SdloraError, AssertionError) as error:
                pytest.fail(f"{page}: {shlex.join(words)}: {error}")


@pytest.mark.parametrize(
    "line",
    [
        "sdlora serch s --like v8", "sdlora search s --trails 3", "sdlora search s -- --core 1 --no-such",
        "cd x && snakemake --no-such all", "snakemake --workflow-profile profiles/slrum -- all",
        "snakemake --set-resources trian:gpu=0 -- all", "dvc exp run --tmp lora@v8", "make sbmo",
    ],
)  # fmt: skip
def test_a_command_that_does_not_exist_is_seen(line: str) -> None:
    (words,) = calls(f"{line} | tail -n 1  # a comment; sdlora nothing")
    with chdir(ROOT), pytest.raises((SystemExit, SdloraError, AssertionError)):
        check(words)
