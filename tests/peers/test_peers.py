"""The files in other tools' own code, and the same numbers without those tools.

A checkout is named by an environment variable; a tool that is not named is skipped. Nothing is downloaded, and none of
its code is in this repository. `docs/lora-files.md` says how, and which versions gave the numbers of `recorded.json`.

    SDLORA_PEER_PYTHON=…/bin/python SDLORA_PEER_COMFYUI=… pytest tests/peers -s
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from safetensors.numpy import load_file, save_file
from small_set import captain, make_set

sys.path.insert(0, str(Path(__file__).parent))
import cases
import kohya_reader

from sdlora.config.params import Base
from sdlora.lora.names import FILE_NAME, FOR_A1111, FOR_LYCORIS
from sdlora.stages.flip.flip import flip_dataset

HERE = Path(__file__).parent
RECORDED = HERE / "recorded.json"
PYTHON = "SDLORA_PEER_PYTHON"  # with diffusers 0.35 and transformers 4: kohya's tools need those
RECORD = "SDLORA_PEER_RECORD"  # set: write recorded.json anew
PLAIN = [name for name, options in cases.CASES.items() if "lora_type" not in options]
DORA = [name for name in cases.CASES if name.startswith("dora")]
LYCORIS = [name for name in cases.CASES if name.startswith(("loha", "lokr"))]
TYPED = {"lora in fp16": "fp16", "lora in bf16": "bf16"}
LARGEST = {"lora in fp16": 1e-3, "lora in bf16": 1e-2}  # of rounding to 11 and 8 bits; 1e-5 elsewhere


@dataclass(frozen=True)
class Tool:
    """A tool, where its checkout is named, and which files it must read."""

    name: str
    variable: str
    reader: str
    ending: str  # of the files it reads
    exact: tuple[str, ...]  # cases


TOOLS = [
    Tool("ComfyUI", "SDLORA_PEER_COMFYUI", "comfyui.py", FOR_A1111, (*PLAIN, *DORA, *LYCORIS, *TYPED)),
    Tool("A1111", "SDLORA_PEER_A1111", "a1111.py", FOR_A1111, (*PLAIN, *DORA, *LYCORIS, *TYPED)),
    Tool("kohya", "SDLORA_PEER_SD_SCRIPTS", "merged.py", FOR_A1111, (*PLAIN, *TYPED)),
    Tool("LyCORIS", "SDLORA_PEER_LYCORIS", "merged.py", FOR_A1111, (*PLAIN, *LYCORIS, *TYPED)),
    Tool("LyCORIS, DoRA", "SDLORA_PEER_LYCORIS", "merged.py", FOR_LYCORIS, (*DORA,)),
    Tool("diffusers 0.35", PYTHON, "old_diffusers.py", FILE_NAME, (*PLAIN, *DORA)),
]
#: What a tool makes of a file that is not for it: the reason for the names. (tool, file) -> worst error of those read
NOT_FOR = [("ComfyUI", FILE_NAME), ("ComfyUI", FOR_LYCORIS), ("A1111", FILE_NAME), ("A1111", FOR_LYCORIS),
           ("kohya", FOR_LYCORIS)]  # fmt: skip


@dataclass
class Written:
    """The small base, where each case's files lie, and what they must add to its weights."""

    base: Base
    folders: dict[str, Path]
    updates: dict[str, dict[str, np.ndarray]]

    def file(self, case: str, ending: str) -> Path | None:
        """A case's file with an ending; None if it has none."""
        if ending == FILE_NAME:
            return self.folders[case] / FILE_NAME
        found = sorted(self.folders[case].glob(f"case{ending}*.safetensors"))
        return found[0] if found else None


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("peers")
    base = cases.save_base(folder / "base")
    folders = {name: folder / str(number) for number, name in enumerate((*cases.CASES, *TYPED))}
    updates = {name: cases.write_case(base, name, folders[name]) for name in cases.CASES}
    updates |= {name: cases.write_case(base, "lora", folders[name], dtype) for name, dtype in TYPED.items()}
    return Written(base, folders, updates)


def named(variable: str, what: str) -> str:
    """The path that a user gave, or a skip that says how to give it."""
    place = os.environ.get(variable)
    if not place:
        pytest.skip(f"{what} is not measured: set {variable} to its path (docs/lora-files.md)")
    return place


def run(reader: str, *words: str) -> None:
    """Run a reader in the interpreter that the user named."""
    python = named(PYTHON, "a peer")
    done = subprocess.run([python, str(HERE / "readers" / reader), *words], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def read_by(tool: Tool, written: Written, out: Path, ending: str, names: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Each case's updates as a tool reads them from the file with an ending; no entry where it raises."""
    checkout = named(tool.variable, tool.name)
    files = {name: written.file(name, ending) for name in names}
    found = {name: path for name, path in files.items() if path is not None}
    run(tool.reader, checkout, written.base.model, str(out), *map(str, found.values()))
    results = {}
    for number, name in enumerate(found):
        if (out / f"{number}.safetensors").exists():
            updates = load_file(out / f"{number}.safetensors")
            results[name] = {key: value for key, value in updates.items() if key != "nothing"}
    return results


def worst(read: dict[str, np.ndarray], true: dict[str, np.ndarray]) -> float:
    """Largest difference from the true update, as a share of that layer's largest number."""
    errors = [np.abs(read[n].reshape(true[n].shape) - true[n]).max() / np.abs(true[n]).max() for n in read]
    return float(max(errors, default=0.0))


@pytest.mark.workflow
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_tool_adds_what_was_trained(tool: Tool, written: Written, tmp_path: Path) -> None:
    named(tool.variable, tool.name)
    found = read_by(tool, written, tmp_path, tool.ending, list(tool.exact))
    assert found.keys() == set(tool.exact)
    for name, read in found.items():
        error = worst(read, written.updates[name])
        print(f"| {tool.name} | {tool.ending} | {name} | {len(read)} of {len(written.updates[name])} | {error:.1e} |")
        assert read.keys() == written.updates[name].keys(), name
        assert error <= LARGEST.get(name, 1e-5), name
    if os.environ.get(RECORD):
        _record(tool.name, found)


@pytest.mark.workflow
@pytest.mark.parametrize(("name", "ending"), NOT_FOR)
def test_why_a_file_says_for_whom_it_is(name: str, ending: str, written: Written, tmp_path: Path) -> None:
    """If a tool learns to read such a file, the page and the card may say so."""
    tool = next(tool for tool in TOOLS if tool.name == name)
    named(tool.variable, tool.name)
    case = "lora, all layers" if ending == FILE_NAME else "dora"
    read = read_by(tool, written, tmp_path, ending, [case]).get(case, {})
    true = written.updates[case]
    print(f"| {name} | {ending} | {case} | {len(read)} of {len(true)} | {worst(read, true):.1e} |")
    assert len(read) < len(true) or worst(read, true) > 0.01


def _record(tool: str, found: dict[str, dict[str, np.ndarray]]) -> None:
    kept = json.loads(RECORDED.read_text("utf-8")) if RECORDED.exists() else {}
    kept[tool] = {name: {key: _summary(read[key]) for key in _chosen(read)} for name, read in sorted(found.items())}
    RECORDED.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _chosen(read: dict[str, np.ndarray]) -> list[str]:
    """A few layers: the first, the last, one in between, and a convolution if there is one."""
    names = sorted(read)
    convolutions = [name for name in names if read[name].ndim == 4 and read[name].shape[-1] > 1]
    return sorted({names[0], names[len(names) // 2], names[-1], *convolutions[:1]})


def _summary(value: np.ndarray) -> list[float]:
    """The norm and the first numbers."""
    numbers = [float(np.sqrt((value.astype(np.float64) ** 2).sum())), *value.reshape(-1)[:3].tolist()]
    return [float(f"{number:.6g}") for number in numbers]


@pytest.mark.slow
def test_the_files_give_the_numbers_that_the_tools_gave(written: Written) -> None:
    """Without the tools: formulas of their own in numpy, against what the tools' code computed from such files."""
    recorded = json.loads(RECORDED.read_text("utf-8"))
    weights = {
        f"{part}.{name}": value
        for part, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model"))
        for name, value in load_file(Path(written.base.model) / part / f"{file}.safetensors").items()
    }
    checked = 0
    for tool in TOOLS:
        for case, layers in recorded[tool.name].items():
            if tool.ending == FILE_NAME:
                continue
            path = written.file(case, tool.ending)
            assert path is not None
            modules = kohya_reader.read(path)
            for layer, numbers in layers.items():
                name = layer.replace("unet.", "lora_unet_").replace("text_encoder.", "lora_te_").replace(".", "_")
                update = kohya_reader.update(modules[name], weights[f"{layer}.weight"].astype(np.float64))
                assert np.allclose(_summary(update), numbers, rtol=1e-4, atol=1e-6), (tool.name, case, layer)
                checked += 1
    assert checked > 150


@pytest.mark.workflow
@pytest.mark.parametrize("tool", TOOLS[:2], ids=lambda tool: tool.name)
def test_a_learnt_trigger_is_read_by_its_files_name(tool: Tool, tmp_path: Path) -> None:
    checkout = named(tool.variable, tool.name)
    learnt = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    save_file({"clip_l": learnt}, tmp_path / "pixel-art.safetensors", metadata={"trigger": "pixel art"})
    run("embedding.py", checkout, str(tmp_path), str(tmp_path), "pixel-art", "32")
    assert (np.load(tmp_path / "embedding.npy") == learnt).all()


@pytest.mark.workflow
def test_kohyas_trainer_reads_the_set_of_the_flip_stage(tmp_path: Path) -> None:
    checkout = named("SDLORA_PEER_SD_SCRIPTS", "kohya's trainer")
    captions = ["captain, left\nsecond line", 'captain; a "hat"', "captain, é 日本"]
    pictures = {"a.png": captain(1), "3_hat/b.png": captain(2), "3_hat/c.png": captain(3)}
    folder = make_set(tmp_path / "set", pictures, captions=captions, encode=False, repeats="kohya")
    for layout in ("folders", "metadata"):
        flip_dataset(folder, True, True, "kohya", [layout, "captain / hat"])
        run("kohya_dataset.py", checkout, str(folder / "kohya"), str(tmp_path / layout), layout)
        found = json.loads((tmp_path / layout / "found.json").read_text("utf-8"))
        assert found == {
            "p0.png": {"caption": "captain, left second line", "repeats": 1},
            "p0.flip.png": {"caption": "captain, right second line", "repeats": 1},
            **{f"p1{side}.png": {"caption": captions[1], "repeats": 3} for side in ("", ".flip")},
            **{f"p2{side}.png": {"caption": captions[2], "repeats": 3} for side in ("", ".flip")},
        }


@pytest.mark.workflow
def test_older_diffusers_draws_the_same_with_the_embedded_base(tmp_path: Path) -> None:
    named(PYTHON, "diffusers 0.35 with transformers 4")
    prompts = ["captain, black coat, smile mouth", "toon head, it's a 'shiny' éye 42", ""]
    run("picture.py", "-", str(ROOT / "models/tiny-sd"), str(tmp_path / "old"), *prompts)
    words = [str(HERE / "readers/picture.py"), "-", str(ROOT / "models/tiny-sd"), str(tmp_path / "new"), *prompts]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    old, new = (np.load(tmp_path / name / "picture.npz") for name in ("old", "new"))
    assert (old["tokens"] == new["tokens"]).all()
    assert np.abs(old["pixels"].astype(int) - new["pixels"]).max() <= 1
