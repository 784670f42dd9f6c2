"""What one job is asked to do: a typed record that plan, rules, scripts and freshness all read.

A stage's recipe is a subclass in `stages/<stage>/recipe.py`. Its fields are what the stage's files depend on; `asides`
names those that only say where things are. `plan` builds recipes, the rules take their paths from the class, a script
reads its own back once.
"""

from collections.abc import Mapping
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from sdlora import records
from sdlora.flow.hashing import PRIVATE, sha256_text

Values = dict[str, Any]  # a recipe's identity, as JSON has it


class Recipe(BaseModel):
    """One job's settings, inputs, outputs, code and packages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: ClassVar[str]
    #: File in workflow/scripts; the stage's name where nothing else is said.
    script: ClassVar[str] = ""
    #: Where the stage writes, with Snakemake's wildcards.
    folder_pattern: ClassVar[str]
    #: What Snakemake knows of it, below the folder; a name that ends in a slash is a folder.
    writes: ClassVar[tuple[str, ...]]
    #: Of those, what Snakemake's own report shows, and which text of workflow/report/ stands beside it.
    shown: ClassVar[dict[str, str]] = {}
    #: The record of what made the files, below the folder; `made/<stage>.json` where nothing else is said.
    record: ClassVar[str] = ""
    #: Fields that change no file.
    asides: ClassVar[frozenset[str]] = frozenset()
    #: Whether its job computes on a GPU, where there is one, and so needs a card of its own.
    on_card: ClassVar[bool] = False
    #: Settings that came later, dotted, and the value at which they ask for what was made before they came: at that
    #: value they are no part of the identity, so that what is there stays fresh.
    later: ClassVar[Mapping[str, Any]] = {}

    wildcards: dict[str, str]  # which job of the stage this is
    inputs: tuple[Path, ...] = ()  # records of the jobs before it
    code: str | None = None  # identity of all code the job can reach; None where code says nothing
    software: dict[str, str] = {}  # version of each package that code imports
    entries: tuple[str, ...] = ()  # menu entries that it uses, "module:attribute"

    @classmethod
    def patterns(cls) -> list[str]:
        """Everything that Snakemake knows of the stage's files, the record last."""
        return [f"{cls.folder_pattern}/{path}" for path in (*cls.writes, cls.record or f"made/{cls.stage}.json")]

    @classmethod
    def made_pattern(cls) -> str:
        """Where the record lies."""
        return cls.patterns()[-1]

    @classmethod
    def script_path(cls) -> Path:
        """The script that does the work."""
        return Path("workflow/scripts") / f"{cls.script or cls.stage}.py"

    @property
    def name(self) -> str:
        """Which job of the stage this is, for a reader and for the recipe's file."""
        return "/".join(self.wildcards.values()) or "all"

    @cached_property
    def folder(self) -> Path:
        """The folder it writes."""
        return Path(self.folder_pattern.format(**self.wildcards))

    @cached_property
    def made(self) -> Path:
        """The record of what made its files."""
        return Path(self.made_pattern().format(**self.wildcards))

    @cached_property
    def outputs(self) -> tuple[Path, ...]:
        """The files and folders that Snakemake knows, but the record."""
        return tuple(Path(pattern.format(**self.wildcards)) for pattern in self.patterns()[:-1])

    @cached_property
    def path(self) -> Path:
        """The file a script reads the recipe from."""
        return PRIVATE / "recipes" / (self.script or self.stage) / f"{self.name}.json"

    @property
    def cards(self) -> int:
        """How many GPUs its job computes on, where there are any."""
        return int(self.on_card)

    @property
    def text(self) -> str:
        """What that file holds."""
        return records.compact_json(self.model_dump(mode="json"))

    def identity(self) -> Values:
        """All that the job's files depend on, but its inputs: equal identities make equal files of equal inputs."""
        unseen = {"wildcards", "inputs", *self.asides}
        values = {"stage": self.stage, **self.model_dump(mode="json", exclude=unseen)}
        for name, as_before in self.later.items():
            *sections, key = name.split(".")
            place = reduce(lambda above, section: above and above[section], sections, values)
            if place and key in place and place[key] == as_before:
                del place[key]
        return values

    def digest(self) -> str:
        """sha256 of the identity."""
        return sha256_text(records.compact_json(self.identity()))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a recipe back.

        Raises:
            ValueError: If the file holds none.
        """
        return cls.model_validate_json(path.read_text("utf-8"))
