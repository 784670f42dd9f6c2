"""Which code a job can reach: the identity of its script and of the menu entries it was told to use.

Not files are followed but definitions: from a function to the functions, classes and constants that it names, and on
through imports, also those inside functions. So a job is not stale because a neighbour of what it uses was changed or
added. Comments, docstrings and layout do not count. What a file says is remembered by the file's hash.

Nothing dynamic is followed: what a recipe chooses by name (`choices.py`) must be given as an entry. The classes of
config/ are schemas, whose values are in the recipe; of them count the methods whose names are read by what was reached.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sdlora import records

PACKAGE = Path(__file__).parents[1]
CODE_MEMORY = Path(".sdlora/code.json")
NAME = PACKAGE.name
WHOLE = ""  # the name under which a module's other statements stand: they run whenever it is imported
TEMPLATES = ("templates", "vendor")  # folders whose files a page is made of
FORMAT = 2  # of what is remembered
SCHEMA = "config"  # the package of them
# Modules whose behaviour reaches a stage only through its recipe (plan.py resolves what they decide), or never; the
# recipes' own as well.
_NOT_CODE = {
    "choices", "errors", "flow.plan", "flow.networks", "flow.makers", "flow.inputs", "flow.hashing", "flow.freshness",
    "flow.command", "flow.code", "flow.mtimes", "flow.cards", "cli",
    # these refuse a training but never change what it writes
    "gpu", "memory.preflight", "memory.prediction", "memory.demand", "memory.meter",
}  # fmt: skip


@dataclass(frozen=True)
class Module:
    """What one file says: each definition's digest and the names it uses, and what those names were imported as."""

    digests: dict[str, str]
    uses: dict[str, list[str]]  # "name" or "name.attribute", of this module's globals
    imports: dict[str, str]  # local name -> dotted name
    runs: list[str]  # functions, and methods as "class.name", which are definitions, too
    reads: dict[str, list[str]]  # attributes that a definition reads, of whatever


@dataclass
class Reached:
    """What a walk found."""

    digests: dict[str, str] = field(default_factory=dict)  # "module:name" -> digest
    packages: set[str] = field(default_factory=set)  # top-level names of what is neither ours nor Python's
    reads: set[str] = field(default_factory=set)  # names of attributes that it reads

    @property
    def identity(self) -> str:
        """One short hash of all that was reached."""
        text = "\n".join(f"{name} {digest}" for name, digest in sorted(self.digests.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Code:
    """The package's files, read once a content."""

    def __init__(self, memory: Path | None = None, package: Path | None = None) -> None:
        self._package = package or PACKAGE
        self._memory = memory
        self._known: dict[str, Any] = {}
        self._changed = False
        self._modules: dict[str, Module | None] = {}
        if memory and memory.is_file():
            with suppress(ValueError, OSError, AttributeError, KeyError, TypeError):
                found = records.read_json(memory)
                self._known = dict(found["files"]) if found.get("format") == FORMAT else {}

    def reach(self, script: Path, entries: Iterable[str] = ()) -> Reached:
        """Everything that a script, and the menu entries it is given, can reach.

        Args:
            script: A file outside the package; all its statements count. One that is not there has none.
            entries: "module:attribute", as in `choices.py`.
        """
        found = Reached()
        waiting: list[str] = []
        if script.is_file():
            module = self._read(script)
            for name in module.digests:
                waiting += self._found(found, f"{script.name}:{name}", module, name)
        waiting += [entry.replace(":", ".") for entry in entries]
        while waiting:
            waiting += self._follow(waiting.pop(), found)
            waiting = waiting or self._methods(found)
        for template in self._templates(found):
            found.digests[template.name] = hashlib.sha256(template.read_bytes()).hexdigest()
        return found

    def save(self) -> None:
        """Remember what was read; where that cannot be written, it is read again."""
        if self._changed and self._memory:
            with suppress(OSError):
                records.write_json(self._memory, {"format": FORMAT, "files": self._known})

    def _found(self, found: Reached, label: str, module: Module, name: str) -> list[str]:
        """Note a definition; what it uses, as dotted names."""
        if label in found.digests:
            return []
        found.digests[label] = module.digests[name]
        found.reads.update(module.reads[name])
        own = label.split(":")[0]
        return [self._dotted(own, module, use) for use in module.uses[name]]

    def _dotted(self, own: str, module: Module, use: str) -> str:
        first, _, rest = use.partition(".")
        if first in module.imports:
            return f"{module.imports[first]}.{rest}" if rest else module.imports[first]
        return f"{own}:{first}"

    def _follow(self, name: str, found: Reached) -> list[str]:
        """One name, `package.module.attribute` or `module:global`; what lies behind it."""
        if ":" in name:
            own, _, attribute = name.partition(":")
            return self._member(own, attribute, found)
        parts = name.split(".")
        if parts[0] != NAME:
            found.packages |= {parts[0]} - sys.stdlib_module_names
            return []
        for count in range(len(parts), 0, -1):
            own = ".".join(parts[1:count])
            if own in _NOT_CODE or own.endswith(".recipe"):
                return []
            if self._module(own) is not None:
                return self._member(own, parts[count] if count < len(parts) else None, found)
        return []

    def _member(self, own: str, attribute: str | None, found: Reached) -> list[str]:
        """A definition of a module of ours; None is the module itself, with all that is in it."""
        module = self._module(own)
        if module is None or (_is_schema(own) and attribute not in module.runs):
            return []
        if attribute is None:
            names = [name for name in module.digests if "." not in name]
        elif attribute in module.digests:
            names = [attribute] if _is_schema(own) else [WHOLE, attribute]
        else:  # something it imports, or that is no definition of it
            return [module.imports[attribute]] if attribute in module.imports else []
        waiting = []
        for name in names:
            if name in module.digests:
                waiting += self._found(found, f"{own}:{name}", module, name)
        return waiting

    def _methods(self, found: Reached) -> list[str]:
        """What is used by the methods of schemas that what was reached asks for, and that it was not told of before."""
        asked = found.reads & self._of_schemas.keys()
        return [use for name in sorted(asked) for place in self._of_schemas[name] for use in self._found(found, *place)]

    @cached_property
    def _of_schemas(self) -> dict[str, list[tuple[str, Module, str]]]:
        """By the name of a method: its label, and where it is."""
        places: dict[str, list[tuple[str, Module, str]]] = {}
        for path in sorted((self._package / SCHEMA).glob("*.py")):
            own = f"{SCHEMA}.{path.stem}"
            module = self._read(path)
            for name in module.runs:
                method = name.partition(".")[2]
                if method and not method.startswith("__"):
                    places.setdefault(method, []).append((f"{own}:{name}", module, name))
        return places

    def _module(self, own: str) -> Module | None:
        if own not in self._modules:
            place = self._package.joinpath(*own.split(".")) if own else self._package
            path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            self._modules[own] = self._read(path) if path.is_file() else None
        return self._modules[own]

    def _read(self, path: Path) -> Module:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._known:
            self._known[digest] = vars(_parse(content))
            self._changed = True
        return Module(**self._known[digest])

    def _templates(self, found: Reached) -> Iterator[Path]:
        """The page's templates and scripts, of the packages that were reached."""
        for module in sorted({label.split(":")[0].rpartition(".")[0] for label in found.digests}):
            place = self._package.joinpath(*module.split("."))
            yield from sorted(path for folder in TEMPLATES for path in (place / folder).glob("*.*"))


def _is_schema(own: str) -> bool:
    return own.startswith(f"{SCHEMA}.")


def _parse(content: bytes) -> Module:
    tree = ast.parse(content)
    imports = dict(_imports(tree))
    named: dict[str, list[ast.stmt]] = {WHOLE: []}
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom) or _is_text(statement):
            continue
        for name in _names(statement) or [WHOLE]:
            named.setdefault(name, []).append(statement)
    known = {*named, *imports} - {WHOLE}
    named.update(_methods(tree))
    digests, uses, reads = {}, {}, {}
    for name, statements in named.items():
        if not statements:
            continue
        uses[name] = sorted({use for statement in statements for use in _uses(statement) if use.split(".")[0] in known})
        reads[name] = sorted({node.attr for s in statements for node in ast.walk(s) if isinstance(node, ast.Attribute)})
        text = "\n".join(ast.dump(_without_docstrings(statement)) for statement in statements)
        digests[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    runs = [name for name, parts in named.items() if parts and isinstance(parts[0], ast.FunctionDef)]
    return Module(digests, uses, imports, runs, reads)


def _methods(tree: ast.Module) -> Iterator[tuple[str, list[ast.stmt]]]:
    for above in (statement for statement in tree.body if isinstance(statement, ast.ClassDef)):
        for inner in above.body:
            if isinstance(inner, ast.FunctionDef):
                yield f"{above.name}.{inner.name}", [inner]


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Local name -> dotted name, of every import of a file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], alias.name if alias.asname else alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _names(statement: ast.stmt) -> list[str]:
    """The globals that a statement defines and does nothing else."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets: Sequence[ast.expr] = ()
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [t.id for t in targets if isinstance(t, ast.Name)] if all(isinstance(t, ast.Name) for t in targets) else []


def _uses(statement: ast.stmt) -> set[str]:
    """Names of globals that a statement reads, each with its first attribute where it has one."""
    visitor = _Uses()
    visitor.visit(statement)
    return visitor.found


class _Uses(ast.NodeVisitor):
    """Reads names as Python's scopes do: parameters and what a function assigns are its own."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self._frames: list[set[str]] = []

    def visit_Name(self, node: ast.Name) -> None:
        self._use(node.id, "")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name):
            self._use(node.value.id, f".{node.attr}")
        else:
            self.visit(node.value)

    def _use(self, name: str, attribute: str) -> None:
        if not any(name in frame for frame in self._frames):
            self.found.add(name + attribute)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        outside = [*getattr(node, "decorator_list", []), node.args, getattr(node, "returns", None)]
        for part in outside:
            if part is not None:
                self.visit(part)
        body = node.body if isinstance(node.body, list) else [node.body]
        self._frames.append(_own_names(node, body))
        for statement in body:
            self.visit(statement)
        self._frames.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _function

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        own = {n.id for part in node.generators for n in ast.walk(part.target) if isinstance(n, ast.Name)}
        self.visit(node.generators[0].iter)
        self._frames.append(own)
        self.generic_visit(node)
        self._frames.pop()

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension


def _own_names(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, body: Sequence[ast.AST]) -> set[str]:
    """Names that belong to a function: its parameters, and what its own statements assign but do not declare global."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    own, shared, waiting = {argument.arg for argument in every if argument}, set(), [*body]
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.Global | ast.Nonlocal):
            shared |= {*part.names}
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store | ast.Del):
            own.add(part.id)
        elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(part.name)
            continue  # what is assigned inside is not ours
        elif isinstance(part, ast.ExceptHandler) and part.name:
            own.add(part.name)
        elif isinstance(part, ast.Lambda | ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            continue
        waiting += ast.iter_child_nodes(part)
    return own - shared


def _without_docstrings(statement: ast.stmt) -> ast.stmt:
    for node in ast.walk(statement):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if part is not node.body[0] or not _is_text(part)]
    return statement


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring, or a string that stands alone."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
