"""The settings: what they say by default, and how mistakes are told."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, SMALL, Project, shipped_with_v8

from sdlora import records
from sdlora.config import params
from sdlora.config.docs import reference_page
from sdlora.config.evaluate import Evaluate
from sdlora.config.load import load
from sdlora.errors import ParamsError
from sdlora.flow import inputs

# Version, rank, learning rate, steps, checkpoint interval, cropped: the write-up's table.
WRITE_UP = [
    ("v1", 32, 1e-4, 900, 100, True),
    ("v2", 4, 1e-4, 500, 100, True),
    ("v3", 16, 1e-4, 800, 100, True),
    ("v4", 16, 1e-4, 800, 100, True),
    ("v5", 32, 1.5e-4, 1200, 50, False),
    ("v6", 32, 1e-4, 400, 100, False),
    ("v7", 32, 1.5e-4, 900, 50, False),
    ("v8", 64, 1.5e-4, 1200, 100, False),
    ("v9", 64, 1e-4, 1400, 100, False),
    ("v10", 64, 5e-5, 3000, 250, False),
]


def with_version(folder: Path, version: str, preset: str = "{}") -> Path:
    """A copy of `params.yaml` with two versions, v8 and `mine`, and one preset more, `own`."""
    text = shipped_with_v8()
    for section, added in (("versions", f"mine: {version}"), ("presets", f"own: {preset}")):
        text = text.replace(f"\n{section}:\n", f"\n{section}:\n  {added}\n")
    records.write_text(folder / "params.yaml", text)
    return folder / "params.yaml"


@pytest.fixture(scope="module")
def shipped() -> params.Params:
    return load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def on_sd15(tmp_path_factory: pytest.TempPathFactory) -> params.Params:
    """The same with the write-up's own base."""
    file = tmp_path_factory.mktemp("sd15") / "params.yaml"
    text = (ROOT / "params.yaml").read_text("utf-8")
    records.write_text(file, text.replace("\nbase: tiny\n", "\nbase: sd15\n", 1))
    return load(file)


@pytest.mark.parametrize(("name", "rank", "rate", "steps", "every", "cropped"), WRITE_UP)
def test_versions_are_the_write_ups(
    on_sd15: params.Params, name: str, rank: int, rate: float, steps: int, every: int, cropped: bool
) -> None:
    version = on_sd15.versions[name]
    assert version.base == "sd15"
    train, sample = version.train, version.sample
    assert (train.rank, train.learning_rate, train.steps, train.checkpoint_every) == (rank, rate, steps, every)
    assert train.scaling_alpha == rank
    assert (train.optimizer, train.lr_schedule, train.batch_size) == ("adamw8bit", "cosine_with_restarts", 1)
    assert train.weighting == "none"
    assert version.fit.method == ("center_crop" if cropped else "pad")
    assert (sample.lora_scale, sample.guidance_scale, sample.inference_steps) == (0.9, 7.0, 30)
    assert sample.negative_prompt.startswith("shiny eyes, glossy eyes")
    assert (sample.hires is None) == cropped
    if sample.hires:
        assert (sample.hires.factor, sample.hires.denoising_strength) == (1.5, 0.35)


def test_report_and_sdxl_versions(shipped: params.Params) -> None:
    pixel, miku = shipped.versions["pixel"].train, shipped.versions["miku"].train
    assert (pixel.rank, pixel.alpha, pixel.learning_rate, pixel.batch_size, pixel.steps) == (4, 4, 1e-4, 2, 600)
    assert (miku.rank, miku.alpha, miku.steps, miku.checkpoint_every, miku.seed) == (8, 4, 250, 50, 42)
    assert (miku.optimizer, miku.betas, miku.weight_decay, miku.epsilon) == ("adamw", (0.9, 0.999), 1e-2, 1e-8)
    large, small = shipped.versions["naruto-1024"], shipped.versions["naruto-256"]
    assert (large.base, large.train.batch_size, large.train.accumulation, large.train.steps) == ("sdxl", 1, 8, 765)
    assert [s.learning_rate for s in large.train.lr_stages] == [1e-4, 3e-5]
    assert (small.fit.size_px, small.train.batch_size, small.train.steps) == (256, 12, 200)


def test_presets_are_the_tools_recommendations(shipped: params.Params) -> None:
    best, balanced, fast = (shipped.presets[name].train for name in ("best-quality", "balanced", "fast"))
    for train in (best, balanced, fast):
        assert (train.weighting, train.value("snr_gamma")) == ("min_snr", 5.0)
        assert train.ema is not None and train.ema.decay == 0.9999
    assert (best.optimizer, best.learning_rate, balanced.optimizer) == ("prodigy", 1.0, "prodigy")
    assert (fast.optimizer, fast.learning_rate, fast.noise) == ("adamw", 1e-4, ())
    assert (best.noise, balanced.noise, best.value("noise_offset")) == (("pyramid", "offset"), ("offset",), 0.1)
    assert best.shuffle_tags
    methods = {name: preset.fit.method for name, preset in shipped.presets.items()}
    assert methods == {"best-quality": "bucket", "balanced": "bucket", "fast": "pad"}


def test_a_version_states_what_differs_from_its_preset(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text("utf-8")
    own = "versions:\n  mine:\n    preset: balanced\n    train: {rank: 7, ema: null}\n    sample: {weights: raw}\n"
    (tmp_path / "params.yaml").write_text(text.replace("versions:\n", own, 1), encoding="utf-8")
    mine = load(tmp_path / "params.yaml").versions["mine"]
    assert (mine.train.rank, mine.train.ema, mine.train.optimizer) == (7, None, "prodigy")
    assert (mine.fit.method, mine.sample.lora_scale) == ("bucket", 0.9)  # from the preset, from the defaults


def with_base_defaults(folder: Path, own: str, version: str = "{}") -> Path:
    """The same with a base more, `other`, that has `defaults` of its own."""
    file = with_version(folder, version, "{base: other, train: {rank: 7}}")
    base = f"  other:\n    {{model: m, family: sd, size_px: 64, captioner: m, defaults: {own}}}\n"
    records.write_text(file, file.read_text("utf-8").replace("\nbases:\n", f"\nbases:\n{base}", 1))
    return file


def test_versions_start_from_what_their_base_says(tmp_path: Path, shipped: params.Params) -> None:
    own = "{train: {rank: 5, steps: 70, checkpoint_every: 35}, sample: {hires: {factor: 2.0}}}"
    mine = load(with_base_defaults(tmp_path, own, "{base: other, train: {steps: 90}}")).versions["mine"]
    assert (mine.train.rank, mine.train.steps, mine.train.optimizer) == (5, 90, "adamw8bit")
    assert mine.sample.hires is not None
    assert (mine.sample.hires.factor, mine.sample.hires.denoising_strength) == (2.0, 0.35), "merged key by key"
    found = load(with_base_defaults(tmp_path, own, "{preset: own, sample: {hires: null}}")).versions
    assert (found["mine"].base, found["mine"].train.rank, found["mine"].train.steps) == ("other", 7, 70)
    assert found["mine"].sample.hires is None
    assert found["v8"] == shipped.versions["v8"], "another base's"


@pytest.mark.parametrize(
    ("own", "version", "said"),
    [
        ("{train: {rnak: 5}}", "{base: other}", "defaults.train.rnak: unknown key; did you mean rank?"),
        ("{train: {rnak: 5}}", "{}", "defaults.train.rnak: unknown key; did you mean rank?"),
        ("{trian: {rank: 5}}", "{}", "defaults.trian: unknown key; did you mean train?"),
        ("{base: tiny}", "{}", "defaults.base: unknown key"),
        (
            "{train: {rank: many}}",
            "{preset: own}",
            "defaults.train.rank: 'many' is not allowed: a whole number is wanted",
        ),
        ("[rank]", "{}", "defaults: ['rank'] is not allowed: a section for each stage is wanted"),
    ],
)
def test_mistakes_in_what_a_base_says_are_told_there(tmp_path: Path, own: str, version: str, said: str) -> None:
    file = with_base_defaults(tmp_path, own, version)
    line = next(n for n, row in enumerate(file.read_text("utf-8").splitlines(), 1) if "model: m, family" in row)
    with pytest.raises(ParamsError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}:{line}: bases.other.{said}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_preset_starts_from_no_other(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"presets.own.preset: 'fast' is not allowed: a preset starts from the def"):
        load(with_version(tmp_path, "{}", "{preset: fast}"))


def test_checkpoint_steps_include_the_last() -> None:
    train = params.Train(steps=765, checkpoint_every=30)
    assert train.checkpoint_steps[0] == 30
    assert train.checkpoint_steps[-2:] == (750, 765)


def test_several_seeds_are_versions_of_their_own(tmp_path: Path, shipped: params.Params) -> None:
    text = (ROOT / "params.yaml").read_text("utf-8").replace("rank: 64, learning_rate: 1e-4", "seeds: 3, rank: 64")
    text = text.replace("  v9:\n", "  v9:\n    chosen: 700\n    remark: good\n")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    found = load(tmp_path / "params.yaml")
    names = ["v9", "v9-seed43", "v9-seed44"]
    assert found.trainings("v9") == names and found.trainings("v8") == ["v8"]
    assert [found.versions[name].train.seed for name in names] == [42, 43, 44]
    assert [found.versions[name].chosen for name in names] == [700, None, None]
    assert found.versions["v9-seed44"].train.rank == 64 and found.versions["v9-seed44"].remark == ""
    assert found.made == [*found.run[:9], "v9-seed43", "v9-seed44", *found.run[9:]]
    assert found.versions.keys() - shipped.versions.keys() == {*names[1:]}
    (tmp_path / "params.yaml").write_text(text + "  v9-seed44: {}\n", encoding="utf-8")
    with pytest.raises(ParamsError, match=r"versions.v9-seed44: is the name of a further training of v9 \(train"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("step", [750, 1500])
def test_a_chosen_step_is_a_checkpoint(tmp_path: Path, step: int) -> None:
    text = (ROOT / "params.yaml").read_text("utf-8").replace("  v9:\n", f"  v9:\n    chosen: {step}\n")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError, match=rf"versions.v9: chosen is {step}, but the checkpoints are 100, 200, .*, 14"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text(text.replace(f"chosen: {step}", "chosen: 700"), encoding="utf-8")
    assert load(tmp_path / "params.yaml").versions["v9"].chosen == 700


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("{lora: x.safetensors, train: {rank: 4}}", "versions.mine.train: has no effect beside lora"),
        ("{lora: x.safetensors, chosen: 1}", "versions.mine.chosen: has no effect beside lora"),
        ("{lora: x.safetensors, sample: {weights: ema}}", "versions.mine: sample.weights is ema, but"),
        ("{lora: [{version: v88}]}", "lora.0.version: 'v88' is not trained here; did you mean v8"),
        ("{lora: [{version: v8, step: 750}]}", "lora.0.step: 750 is none of the checkpoints of v8: 100, 200"),
        ("{lora: [{weight: 0.5}]}", "versions.mine.lora.0: a LoRA is named by its file or by its version"),
        ("{lora: [{file: x, step: 5}]}", "step is 5, but a file has no steps"),
        ("{lora: [{flie: x}]}", "versions.mine.lora.0.flie: unknown key; did you mean file?"),
        ("{lora: 3}", "versions.mine.lora: 3 is not allowed"),
        ("{lora: []}", "versions.mine.lora"),
    ],
)
def test_what_a_lora_from_elsewhere_may_say(tmp_path: Path, version: str, said: str) -> None:
    with pytest.raises(ParamsError) as caught:
        load(with_version(tmp_path, version))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[ssim, ssim]", "choose_by names 'ssim' twice"),
        ("[ssim, psnr]", "defaults.evaluate: choose_by is 'psnr', which metrics does not have; did you mean psnr_db?"),
        ("[]", "defaults.evaluate.choose_by"),
    ],
)
def test_several_metrics_choose_if_they_are_measured(tmp_path: Path, value: str, said: str) -> None:
    text = (ROOT / "params.yaml").read_text("utf-8").replace("choose_by: effnet_lite0_distance", f"choose_by: {value}")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError) as caught:
        load(tmp_path / "params.yaml")
    assert said in str(caught.value)


MISTAKES = [
    ("rank: 64, learning_rate: 1.5e-4", "rnak: 64, learning_rate: 1.5e-4", ("versions.v8.train.rnak", "rank")),
    ("rank: 64, learning_rate: 1.5e-4", "rank: 64, learning_rate: -1", ("versions.v8.train.learning_rate", "-1")),
    ("rank: 64, learning_rate: 1.5e-4", "rank: '64'", ("versions.v8.train.rank", "'64'", "64, without quotes")),
    ("steps: 1400}", "steps: 1400, checkpoint_every: 2000}", ("versions.v9.train", "checkpoint_every is 2000")),
    ("dataset: captain\n", "dataset: captian\n", ("dataset", "captian", "did you mean captain")),
    ("run: [v1,", "run: [v11,", ("run.0: there is no version 'v11'; did you mean v1",)),
    ("query: hatsune miku, limit: 50", "query: hatsune miku, limt: 50", ("datasets.hatsune-miku", "limit")),
    ("optimizer: adamw8bit", "optimizer: adamw8bits", ("defaults.train.optimizer", "did you mean adamw8bit")),
    ("family: sdxl", "family: sdx", ("bases.sdxl.family", "did you mean sdxl?")),
    ("threads: 2", "thread: 2", ("thread", "did you mean threads")),
    ("flip: {probability: 0.5}", "flop: {probability: 0.5}", ("defaults.flop", "did you mean flip")),
    ("fill: edge", "fill: egde", ("defaults.fit.fill", "egde", "blur")),
    ("  v2:\n", "  report:\n", ("versions.report: a version cannot be called report",)),
    ("optimizer: prodigy", "optimizer: prodgy", ("presets.best-quality.train.optimizer", "did you mean prodigy")),
    (
        "train: {rank: 64, learning_rate: 1e-4, steps: 1400}",
        "preset: balancd",
        ("versions.v9.preset", "did you mean balanced"),
    ),
    ("lr_cycles: 1 ", "lr_cycles: 0 ", ("defaults.train.lr_cycles", "0")),
]


@pytest.mark.parametrize(("before", "after", "said"), MISTAKES)
def test_mistakes_name_place_value_and_choice(tmp_path: Path, before: str, after: str, said: tuple[str, ...]) -> None:
    text = (ROOT / "params.yaml").read_text("utf-8")
    assert before in text
    changed = text.replace(before, after, 1)
    file = tmp_path / "params.yaml"
    file.write_text(changed, encoding="utf-8")
    with pytest.raises(ParamsError) as caught:
        load(file)
    message = str(caught.value)
    for part in said:
        assert part in message
    line = next(n for n, row in enumerate(changed.splitlines(), 1) if after.split("\n")[0] in row)
    assert f"{file}:{line}:" in message


@pytest.mark.parametrize("ends", [(500, 300, 900), (300, 300, 900)])
def test_stages_of_the_rate_follow_each_other(tmp_path: Path, ends: tuple[int, ...]) -> None:
    stages = ", ".join(f"{{until_step: {end}, learning_rate: 1e-4}}" for end in ends)
    train = f"steps: 900, lr_schedule: staged, lr_stages: [{stages}]"
    said = rf"versions.mine.train.lr_stages: until_step is {', '.join(map(str, ends))}; each stage must end after"
    with pytest.raises(ParamsError, match=said):
        load(with_version(tmp_path, f"{{train: {{{train}}}}}"))


@pytest.mark.parametrize("schedule", ["cosine", "constant_with_warmup"])
def test_a_warm_up_ends_before_the_training(tmp_path: Path, schedule: str) -> None:
    train = f"steps: 500, lr_schedule: {schedule}, lr_warmup_steps"
    with pytest.raises(
        ParamsError, match=r"mine.train: lr_warmup_steps is 500 of 500 steps: the peak is never reached"
    ):
        load(with_version(tmp_path, f"{{train: {{{train}: 500}}}}"))
    load(with_version(tmp_path, f"{{train: {{{train}: 499}}}}"))


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", ["(", "(?i)to_k", "a{99999999999}"])
def test_patterns_of_layers_are_regular_expressions(tmp_path: Path, option: str, pattern: str) -> None:
    said = f"versions.mine.train.{option}: {pattern!r} is no regular expression: "
    with pytest.raises(ParamsError, match=re.escape(said)):
        load(with_version(tmp_path, f"{{train: {{{option}: {{'{pattern}': 4}}}}}}"))


@pytest.mark.parametrize(
    ("optimizer", "option", "value", "default"),
    [
        ("adafactor", "betas", "[0.8, 0.9]", "[0.9, 0.999]"),
        ("adafactor", "epsilon", "1e-6", "1e-8"),
        ("lion", "epsilon", "1e-6", "1e-8"),
    ],
)
def test_what_an_optimizer_does_not_read_is_left_at_its_default(
    tmp_path: Path, optimizer: str, option: str, value: str, default: str
) -> None:
    with pytest.raises(ParamsError, match=f"versions.mine.train: {option} has no effect with optimizer: {optimizer}"):
        load(with_version(tmp_path, f"{{train: {{optimizer: {optimizer}, {option}: {value}}}}}"))
    load(with_version(tmp_path, f"{{train: {{optimizer: {optimizer}, {option}: {default}}}}}"))
    load(with_version(tmp_path, f"{{train: {{optimizer: adamw, {option}: {value}}}}}"))


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("betas: [1.0, 0.999]", "train.betas.0: 1.0 is not allowed: input should be less than 1"),
        ("betas: [0.9, 1.0]", "train.betas.1: 1.0 is not allowed: input should be less than 1"),
        (
            "optimizer: schedulefree_adamw, lr_schedule: constant, betas: [0.0, 0.9]",
            "train: betas.0 is 0, but schedulefree_adamw divides by it",
        ),
    ],
)
def test_betas_that_no_optimizer_takes(tmp_path: Path, train: str, said: str) -> None:
    with pytest.raises(ParamsError, match=f"versions.mine.{said}"):
        load(with_version(tmp_path, f"{{train: {{{train}}}}}"))
    load(with_version(tmp_path, "{train: {optimizer: adamw, betas: [0.0, 0.999]}}"))


def test_a_bucket_is_no_larger_than_its_base(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r":\d+: versions.mine.fit.bucket_step_px: 128 is more than bases.tiny"):
        load(with_version(tmp_path, "{fit: {method: bucket, bucket_step_px: 128}}"))
    for more in ("size_px: 512, bucket_step_px: 128", "bucket_step_px: 64"):
        load(with_version(tmp_path, f"{{fit: {{method: bucket, {more}}}}}"))


@pytest.mark.parametrize(
    ("version", "preset", "said"),
    [
        ("{base: tinny, train: {seeds: 2}}", "{}", "versions.mine.base"),
        ("{preset: own}", "{base: tinny}", "presets.own.base"),
        ("{preset: own, base: tinny}", "{base: tiny}", "versions.mine.base"),
    ],
)
def test_a_base_that_is_not_there_is_told_once_and_where_it_is_named(
    tmp_path: Path, version: str, preset: str, said: str
) -> None:
    file = with_version(tmp_path, version, preset)
    with pytest.raises(ParamsError) as caught:
        load(file)
    line = next(number for number, row in enumerate(file.read_text("utf-8").splitlines(), 1) if "tinny" in row)
    assert str(caught.value) == f"{file}:{line}: {said}: 'tinny' is not defined; did you mean tiny?"


@pytest.mark.parametrize(
    ("version", "preset", "said"),
    [
        ("{train: {seeds: 3, rank: 0}}", "{}", "versions.mine"),
        ("{preset: own, train: {seeds: 3}}", "{train: {rank: 0}}", "presets.own"),
    ],
)
def test_a_mistake_is_not_told_again_of_further_trainings(tmp_path: Path, version: str, preset: str, said: str) -> None:
    with pytest.raises(ParamsError, match=rf"^[^\n]*: {said}.train.rank: 0 is not allowed[^\n]*$"):
        load(with_version(tmp_path, version, preset))


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("versions:\n  V8: {}\n", "versions.v8 differs from V8"),
        ("versions:\n  Report: {}\n", "versions.Report differs from report"),
        ("bases:\n  Tiny: {model: m, family: sd, size_px: 64, captioner: m}\n", "bases.tiny differs from Tiny"),
    ],
)
def test_names_that_a_file_system_takes_for_one_are_refused_there_and_noted_elsewhere(
    tmp_path: Path, added: str, said: str
) -> None:
    section = f"\n{added.partition(chr(10))[0]}\n"
    text = (ROOT / "params.yaml").read_text("utf-8").replace(section, f"\n{added}", 1)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    notes = [note for note in inputs.doubtful(load(tmp_path / "params.yaml")) if "in case alone" in note]
    assert len(notes) == 1 and notes[0].startswith(f"note: {said} in case alone: on a Mac")
    (tmp_path / "PARAMS.YAML").symlink_to("params.yaml")  # as a Mac finds it
    place, what = said.split(" ", 1)
    line = next(n for n, row in enumerate(text.splitlines(), 1) if row.startswith(f"  {place.partition('.')[2]}:"))
    with pytest.raises(ParamsError) as caught:
        load(tmp_path / "params.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'params.yaml'}:{line}: {place}: {what} in case alone, and here")
    assert len(str(caught.value).splitlines()) == 1


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text("utf-8").replace("learning_rate: 5e-5", "learning_rate: 5e-05")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    assert load(tmp_path / "params.yaml").versions["v10"].train.learning_rate == 5e-5


def test_a_metric_is_measured_once() -> None:
    """Twice would be two columns of one name."""
    with pytest.raises(ValueError, match="metrics names 'ssim' twice"):
        Evaluate(metrics=("ssim", "psnr_db", "ssim"), choose_by="ssim")


def test_every_field_is_explained_and_documented() -> None:
    page = (ROOT / "docs" / "params.md").read_text("utf-8")
    assert page == reference_page(), "docs/params.md is not what the schema says; run `make docs`"
    assert "| `optimizer` | `adamw`, " in page and "| `rank` | ≥ 1, ≤ 1,024 | `16` |" in page
    for name, model in params.SECTIONS.items():
        for field, info in model.model_fields.items():
            if model in (params.Params, params.Version):
                continue
            assert info.description or field == "kind", f"{name}.{field} has no description"
            assert f"`{field}`" in page, f"docs/params.md does not list {name}.{field}; run `make docs`"


@pytest.mark.workflow
def test_validation_does_not_import_torch() -> None:
    code = "import sys; from pathlib import Path; from sdlora.flow import plan; from sdlora.config.load import load\n"
    code += "load(Path('params.yaml'), studies=True)\n"
    code += "assert not {'torch', 'diffusers', 'peft'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("rank: 2", "rnak: 2", "versions.a.train.rnak: unknown key; did you mean rank?"),
        ("path: data/embedded/small", "path: data/nothing", "datasets.small.sources[0].path: there is no folder"),
        (
            "evaluate: {",
            "evaluate: {metrics: [clip_t], choose_by: clip_t, clip_model: my/clip, ",
            "error: version a: evaluate.clip_model: 'my/clip' is neither a folder nor to be had from the hub at main.",
        ),
    ],
)
def test_snakemake_fails_at_once(fresh: Project, before: str, after: str, said: str) -> None:
    fresh.edit("params.yaml", before, after)
    began = time.monotonic()
    text = fresh.snakemake("-n", check=False)
    seconds = time.monotonic() - began
    assert said in text
    assert not (fresh.folder / "data/sets").exists()
    assert seconds < 30, "the message must come before any work"


def test_an_anchored_truth_value_is_one(tmp_path: Path) -> None:
    """To Python ruamel's is a number."""
    text = SMALL.replace("held_out: references", "held_out: references\n    flip: &no false\n    kohya_repeats: *no")
    records.write_text(tmp_path / "params.yaml", text)
    dataset = load(tmp_path / "params.yaml").datasets["small"]
    assert dataset.flip is False and dataset.kohya_repeats is False
