"""A YAML file as a tree that knows its lines, and as plain values."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from sdlora.errors import ParamsError

_MOST_VALUES = 200_000  # of a file with all its anchors followed: a hundred versions have some 5,000


def read(path: Path) -> Mapping[str, Any]:
    """The file's tree, small enough to be walked.

    Raises:
        ParamsError: With file and line, if it cannot be read or is no mapping.
    """
    try:
        tree = _parsed(path.read_text("utf-8"))
        if not isinstance(tree, Mapping):
            raise ParamsError(f"{path}: expected a mapping of settings")
        if _count(path, tree, {}, ()) > _MOST_VALUES:
            raise ParamsError(f"{path}: its anchors unfold to more than {_MOST_VALUES:,} values")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ParamsError(
            f"{path}:{line}: byte {error.object[error.start]:#04x} is not UTF-8; save it as UTF-8"
        ) from None
    except MarkedYAMLError as error:
        raise ParamsError(_told(path, error)) from None
    except YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from None
    except AttributeError:  # ruamel.yaml's, of `a: &one {<<: *one}`
        raise ParamsError(f"{path}: a merge key (<<) names what is not a finished mapping") from None
    except RecursionError:
        raise ParamsError(f"{path}: nested too deeply") from None
    except OSError as error:
        raise ParamsError(f"{path}: {error.strerror}") from None
    return tree


@lru_cache(maxsize=8)
def _parsed(text: str) -> Any:
    """The tree of a text, which nobody changes: many a process reads the same file twice."""
    return YAML(typ="rt").load(text)


def _told(path: Path, error: MarkedYAMLError) -> str:
    """What breaks the file, on one line, and where."""
    problem, mark = " ".join(str(error.problem).split()), error.problem_mark or error.context_mark
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    if isinstance(error, DuplicateKeyError):
        key = problem.removeprefix("found duplicate key ").partition(" with value ")[0]
        return f"{where}: the key {key} is there twice in one section; keep one of them"
    if r"'\t'" in problem:
        return f"{where}: not valid YAML: a tab; indent with spaces"
    if "escape" in problem:
        problem += "; between double quotes a backslash begins an escape: take single quotes"
    began = error.context_mark
    context = f", {error.context} that begins in line {began.line + 1}" if error.context and began else ""
    return f"{where}: not valid YAML: {problem}{context}"


def _count(path: Path, node: Any, known: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values a tree holds once every alias is followed; each node is counted once and remembered."""
    if not isinstance(node, Mapping | list | tuple):
        return 1
    if id(node) in above:
        raise ParamsError(f"{path}: an anchor holds an alias of itself")
    if id(node) not in known:
        children = [*node.values()] if isinstance(node, Mapping) else [*node]
        known[id(node)] = 1 + sum(_count(path, child, known, (*above, id(node))) for child in children)
    return known[id(node)]


def plain(node: Any) -> Any:
    """Plain dicts, tuples and numbers instead of ruamel's."""
    if isinstance(node, Mapping):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return tuple(plain(value) for value in node)
    if isinstance(node, ScalarBoolean):  # one with an anchor, which to Python is a number
        return bool(node)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node
