"""Everything on the menu through the front door: Snakemake, every stage, and the file in plain diffusers.

The base is the small one with random weights that tests' projects have as `models/tiny-sd` (`save_small_sd` in
`tests/shapes.py`).
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from embedders import save_small_clip, save_small_dinov2
from helpers import ROOT, SMALL, Project, make_project
from menu_cases import ON_A_GPU, cases, needs_a_gpu, needs_another_base, nested, packed
from PIL import Image
from ruamel.yaml import YAML

from sdlora import records
from sdlora.config.params import Version
from sdlora.flow.provenance import CRATE
from sdlora.lora.names import FILE_NAME

START = {
    "train.rank": 2, "train.steps": 2, "train.checkpoint_every": 2, "train.optimizer": "adamw",
    "train.learning_rate": 1e-3, "sample.inference_steps": 2, "sample.max_references": 1,
    "evaluate.bootstrap_samples": 100, "evaluate.metrics": ["psnr_db"],
    "evaluate.choose_by": "psnr_db",
}  # fmt: skip
ON_A_CPU = [case for case in cases() if not needs_a_gpu(case) and not needs_another_base(case)]
VERSIONS, REFUSED = packed(START, ON_A_CPU)
PRESETS = YAML(typ="safe").load((ROOT / "params.yaml").read_text("utf-8"))["presets"]
NAMED = {
    **{f"menu-{number}": settings for number, settings in enumerate(VERSIONS)},
    **{f"preset-{name}": {"preset": name, **nested(START)} for name in PRESETS},
    **{f"gpu-{number}": nested({**START, name: value}) for number, (name, value) in enumerate(ON_A_GPU.items())},
}
TRAINED = [name for name in NAMED if not name.startswith("gpu")]


def test_every_value_of_every_field_is_in_some_version() -> None:
    assert not REFUSED, REFUSED
    placed = {(name, json.dumps(value)) for version in VERSIONS for name, value in flat(version)}
    for case in ON_A_CPU:
        assert {(name, json.dumps(value)) for name, value in case.settings} <= placed, str(case)
    sections = {case.section for case in ON_A_CPU}
    of_no_section = {"base", "dataset", "preset", "remark", "chosen", "lora", "animate"}  # the last: test_animate.py
    assert sections == Version.model_fields.keys() - of_no_section


def flat(version: dict[str, dict[str, object]]) -> Iterator[tuple[str, object]]:
    for section, settings in version.items():
        for name, value in settings.items():
            yield f"{section}.{name}", value


def dataset_of(name: str) -> str:
    """Versions that fit, caption, mirror or encode otherwise need datasets of their own; refused ones leave none."""
    own = {"fit", "caption", "flip", "encode"} & {*NAMED[name], *PRESETS.get(NAMED[name].get("preset"), {})}
    return name if own or name.startswith("gpu") else "shared"


@pytest.fixture(scope="module")
def project(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """All of it, made in one run that goes on where a version is refused."""
    project = make_project(tmp_path_factory.mktemp("m") / "p", python=served)
    save_small_clip(project.folder / "models/clip")
    save_small_dinov2(project.folder / "models/dinov2")
    params = YAML(typ="safe").load(SMALL)
    del params["defaults"]["train"], params["defaults"]["sample"]
    versions = {name: {**settings, "dataset": dataset_of(name)} for name, settings in NAMED.items()}
    small = {**params["datasets"]["small"], "masks": "data/masks"}
    params["datasets"] = {dataset_of(name): small for name in NAMED}
    params |= {"presets": PRESETS, "dataset": dataset_of("menu-0"), "versions": versions, "run": [*NAMED]}
    with (project.folder / "params.yaml").open("w", encoding="utf-8") as handle:
        YAML(typ="safe", pure=True).dump(params, handle)
    for path in (project.folder / "data/embedded/small/train").iterdir():
        with Image.open(path) as picture:
            mask = Image.new("L", picture.size, 255)
        target = project.folder / "data/masks/train" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        mask.save(target)
    goals = [f"results/{name}/report/index.html" for name in TRAINED]
    said = project.snakemake("--cores", "2", "--resources", "gpu=2", "--keep-going", *goals, check=False)
    (project.folder / "output.txt").write_text(said, encoding="utf-8")
    yield project


@pytest.fixture(scope="module")
def pipeline(project: Project) -> StableDiffusionPipeline:
    torch.set_num_threads(1)
    return StableDiffusionPipeline.from_pretrained(project.folder / "models/tiny-sd")


@pytest.mark.parametrize("name", TRAINED)
def test_it_goes_through_every_stage_and_plain_diffusers_reads_its_file(
    name: str, project: Project, pipeline: StableDiffusionPipeline
) -> None:
    log = project.folder / "logs" / name
    said = "\n".join(path.read_text("utf-8")[-1500:] for path in log.glob("*.log"))
    assert (project.folder / "results" / name / "metrics.csv").exists(), (
        said or project.read("output.txt").decode()[-3000:]
    )
    table = records.read_csv(project.folder / "results" / name / "metrics.csv")
    assert {row["step"] for row in table} >= {"0", "2"}
    assert (project.folder / "results" / name / "report/index.html").exists()
    (checkpoint,) = (project.folder / "results" / name / "checkpoints").glob("step-000002")
    if NAMED[name].get("train", {}).get("lora_type") in ("loha", "lokr"):
        return  # diffusers has no loader for these: the card says how peft loads them, and its own test runs that
    pipeline.load_lora_weights(checkpoint, weight_name="pytorch_lora_weights.safetensors")
    try:
        loaded = [module for module in pipeline.unet.modules() if hasattr(module, "lora_A")]
        assert loaded and all(torch.isfinite(p).all() for module in loaded for p in module.parameters())
    finally:
        pipeline.unload_lora_weights()


@pytest.mark.parametrize("name", [name for name in NAMED if name.startswith("preset")])
def test_the_average_that_is_drawn_is_what_is_published(name: str, project: Project) -> None:
    """Presets draw, measure and choose with `sample.weights: ema`."""
    folder = project.folder / "results" / name
    best = f"step-{records.read_json(folder / 'best.json')['best_step']:06d}"
    (average,) = (folder / "export" / best / "ema").glob("*-comfyui-a1111.safetensors")
    published = (folder / f"{name}.safetensors").read_bytes()
    assert published == average.read_bytes() != (folder / "checkpoints" / best / FILE_NAME).read_bytes()
    assert average.with_suffix(".preview.png").exists(), "what it draws lies beside it"
    project.command("sdlora", "provenance", name)
    (described,) = [one for one in records.read_json(folder / CRATE)["@graph"] if one["@id"] == "./"]
    assert described["mainEntity"] == {"@id": f"checkpoints/{best}/ema/{FILE_NAME}"}


@pytest.mark.parametrize("name", [name for name in NAMED if name.startswith("gpu")])
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_what_a_cpu_cannot_do_is_a_sentence(name: str, project: Project) -> None:
    said = project.snakemake("--cores", "1", f"results/{name}/metrics.csv", check=False)
    assert f"error: version {name}: " in said and "needs a GPU; on a CPU" in said and "Traceback" not in said
    assert not (project.folder / "data/sets" / name).exists(), "before the first job"
