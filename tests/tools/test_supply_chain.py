"""Nothing here loads a file that can run code: no pickle, no code from a model's repository."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

FOLDERS = ("src", "tools", "workflow", "benchmarks")
#: Modules whose files are programs.
UNSAFE = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def dangers(text: str) -> Iterator[str]:
    """What in a source could run a stranger's code, with its line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [node.module or ""]
        else:
            named = []
        yield from (f"{node.lineno}: import {name}" for name in named if name.split(".")[0] in UNSAFE)
        if isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            yield f"{node.lineno}: trust_remote_code"
        if isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {said}" for said in _dangers_of_call(node))


def _dangers_of_call(call: ast.Call) -> Iterator[str]:
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    name = ast.unparse(call.func)
    if "trust_remote_code" in options:
        yield "trust_remote_code"
    if name == "torch.load" and not _is(options.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if "allow_pickle" in options and not _is(options["allow_pickle"], False):
        yield f"{name} with allow_pickle"
    if "use_safetensors" in options and _is(options["use_safetensors"], False):
        yield f"{name} with use_safetensors=False"
    if name.endswith(".from_pretrained") and _has_weights(name) and not _is(options.get("use_safetensors"), True):
        yield f"{name} without use_safetensors=True"
    if name in ("yaml.load", "eval", "exec", "os.system", "pandas.read_pickle", "pd.read_pickle"):
        yield name
    if "shell" in options and not _is(options["shell"], False):
        yield f"{name} with a shell"


def _has_weights(call: str) -> bool:
    """Whether what is loaded can have weights: tokenizers, processors, configs and schedulers have none."""
    kind = call.split(".")[-2].lower()
    return not kind.endswith(("tokenizer", "processor", "config_class", "scheduler_class"))


def _is(value: ast.expr | None, wanted: object) -> bool:
    return isinstance(value, ast.Constant) and value.value is wanted


@pytest.mark.parametrize("text", ["A.from_pretrained(x, use_safetensors=True)", "CLIPTokenizer.from_pretrained(x)"])
def test_the_check_lets_pass(text: str) -> None:
    assert not [*dangers(text)]


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from joblib import load", "torch.load(path)", "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)", "A.from_pretrained(x, trust_remote_code=True)", "yaml.load(text)",
        "A.from_pretrained(x, **{'trust_remote_code': True})", "A.from_pretrained(x, use_safetensors=False)",
        "A.from_pretrained(x)", "A.from_pretrained(x, **{'use_safetensors': True})",
        "eval(text)", "subprocess.run(text, shell=True)",
    ],
)  # fmt: skip
def test_the_check_sees(text: str) -> None:
    assert [*dangers(text)]


def test_nothing_loads_what_can_run_code() -> None:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    found = [f"{path.relative_to(ROOT)}:{said}" for path in files for said in dangers(path.read_text("utf-8"))]
    assert found == []


def test_every_locked_package_has_its_hash() -> None:
    for lock in sorted(Path(ROOT).glob("requirements*.lock")):
        lines = [line for line in lock.read_text("utf-8").splitlines() if line and not line.startswith("#")]
        blocks = "\n".join(lines).replace("\\\n", " ").splitlines()
        assert blocks and all("--hash=sha256:" in block for block in blocks), lock
