"""Nothing here loads a file that can run code: no pickle, no code from a model's repository. All locks are audited."""

import ast
import shutil
import subprocess
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


LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))
OFFLINE = "echo 'ERROR: No matching distribution found for cyclonedx-bom==7.5.0' >&2; exit 1"
# what `python -m venv FOLDER` makes: a pip that does what the file `pip` beside this Python says
PYTHON = """#!/bin/sh
mkdir -p "$3/bin" && cp "$(dirname "$0")/pip" "$3/bin/pip"
"""
TOOLS = """cd "$(dirname "$0")"
printf '#!/bin/sh\\necho "asked: $*"; {says}\\n' > pip-audit
printf '#!/bin/sh\\ncat > {pins}\\n' > cyclonedx-py
chmod +x pip-audit cyclonedx-py
"""


class Bench:
    """The Makefile and the locks in a folder of their own, with a Python and a pip that fetch nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pins = folder, folder / "pins"
        for name in ("Makefile", "pyproject.toml", *LOCKS):
            shutil.copy(ROOT / name, folder / name)
        self.script("python", PYTHON)

    def script(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}", "utf-8")
        (self.folder / name).chmod(0o755)

    def tools(self, says: str = "true") -> None:
        """From now on pip installs tools: `pip-audit` runs `says`."""
        self.script("pip", TOOLS.format(says=says, pins=self.pins))

    def make(self, target: str) -> tuple[int, str]:
        words = ["make", "--silent", target, f"PYTHON={self.folder / 'python'}"]
        done = subprocess.run(words, cwd=self.folder, text=True, capture_output=True, check=False)
        return done.returncode, done.stdout


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.workflow
def test_an_installation_that_failed_is_one_sentence_and_is_begun_anew(bench: Bench) -> None:
    bench.script("pip", OFFLINE)
    for _ in range(2):
        code, said = bench.make("audit")
        assert code == 0 and said.count("\n") == 1, said
        assert said.startswith("not audited: ") and {*LOCKS} <= {*said.replace(";", "").split()}
        assert "No matching distribution found for cyclonedx-bom" in said
        code, said = bench.make("sbom")
        assert code and said.startswith("sbom.cdx.json is not written: ") and said.count("\n") == 1
    bench.tools()
    assert bench.make("audit")[1].count("asked: ") == 1 and bench.make("sbom")[0] == 0


@pytest.mark.workflow
def test_every_lock_is_audited_and_listed(bench: Bench) -> None:
    bench.tools(says="exit 3")
    code, said = bench.make("audit")
    assert code and [said.count(f"-r {lock}") for lock in LOCKS] == [1] * len(LOCKS)
    assert bench.make("sbom")[0] == 0
    listed = [line.split()[0] for line in bench.pins.read_text("utf-8").splitlines() if line[:1] not in ("#", " ")]
    locked = {
        line.split()[0]
        for lock in LOCKS
        for line in (ROOT / lock).read_text("utf-8").splitlines()
        if line[:1] not in ("", "#", " ")
    }
    assert {*listed} == locked and len(listed) == len(locked)
    assert any(pin.startswith("torch==") for pin in listed) and any(pin.startswith("nvidia-") for pin in listed)


@pytest.mark.workflow
@pytest.mark.parametrize("error", ["requests.exceptions.ConnectionError: no", "ERROR: Could not connect to PyPI"])
def test_advisory_databases_out_of_reach_are_one_sentence(bench: Bench, error: str) -> None:
    bench.tools(says=f"echo {error} >&2; exit 1")
    code, said = bench.make("audit")
    assert code == 0 and said.count("\n") == 1 and {*LOCKS} <= {*said.replace(";", "").split()}
    assert said.endswith("; the advisory databases cannot be reached from here\n")
