"""Identity of code: as wide as what the chosen entries can reach, and no wider."""

import shutil
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from small_set import edited

from sdlora import choices
from sdlora.config.train import DEPENDENT
from sdlora.flow import comparing, makers, plan
from sdlora.flow.code import PACKAGE, Code

STAGES = ("scrape", "fit", "caption", "flip", "encode", "train", "sample", "evaluate", "report", "compare")


def copied(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "sdlora", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "sdlora"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package to change."""
    return copied(tmp_path)


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the tests' small version chooses, by stage."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        jobs = plan.jobs(edited(folder))
    return {**{job.stage: [*job.entries] for job in jobs if not job.script}, "compare": [*comparing.MAKERS]}


def identities(package: Path, entries: dict[str, list[str]]) -> dict[str, str]:
    code = Code(package=package)
    return {s: code.reach(ROOT / f"workflow/scripts/{s}.py", entries[s]).identity for s in STAGES}


@pytest.fixture(scope="module")
def unchanged(entries: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The identities of the package as it is."""
    return identities(copied(tmp_path_factory.mktemp("unchanged")), entries)


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text("utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), "utf-8")


NEW_FUNCTION = "\n\ndef unheard_of(x: int) -> int:\n    return x + 1\n"


@pytest.mark.parametrize(
    ("file", "before", "after", "changed"),
    [
        ("stages/evaluate/ssim.py", '"""Structural similarity."""', '"""Other words."""  # and a comment', set()),
        ("stages/evaluate/ssim.py", "sigma=1.5", "sigma=1.4", {"evaluate"}),
        ("stages/evaluate/memorisation.py", "LEAST = 1e-6", "LEAST = 1e-5", set()),  # a metric that is not chosen
        (
            "stages/evaluate/statistics.py",
            "LEVEL, POWER = 0.05",
            "LEVEL, POWER = 0.01",
            {"evaluate", "report", "compare"},
        ),
        ("stages/evaluate/compare.py", '"neither for sure"', '"neither"', {"compare"}),
        ("cli.py", '"print the table of', '"print a table of', set()),
        ("stages/train/losses.py", "error.mean(dim=(1, 2, 3))", "error.mean(dim=(3, 2, 1))", {"train"}),
        ("stages/encode/posterior.py", "127.5", "127", {"encode", "train"}),
        ("stages/encode/encode.py", "encode: {count}", "{count}", {"encode"}),
        ("stages/encode/shards.py", "LIMIT = 128", "LIMIT = 64", {"encode"}),
        ("stages/fit/fit.py", "max(size) / 32", "max(size) / 16", {"fit"}),
        ("stages/flip/flip.py", '"left": "right"', '"left": "up"', {"flip"}),
        ("cpu/packed.py", "256 * 2**20", "128 * 2**20", {"encode", "train", "sample"}),
        ("cpu/replay.py", "TRACED_AFTER = 100", "TRACED_AFTER = 50", {"encode", "train", "sample"}),  # one door
        ("models/sd.py", ".last_hidden_state", ".hidden_states[-2]", {"encode", "train", "sample"}),
        ("models/sd3.py", "hidden_states[-2]", "hidden_states[-1]", set()),  # another family
        ("models/objective.py", "return noise - latents", "return latents - noise", set()),  # another objective
        ("config/train.py", "le=1024", "le=2048", set()),
        # of schemas, what stages ask of them
        ("config/train.py", "self.shuffle_tags or self.tag_dropout > 0", "self.shuffle_tags", {"train"}),
        ("config/train.py", '{pattern})$"', '{pattern})"', {"train"}),
        ("config/params.py", "max(1.0, sample", "max(2.0, sample", {"train"}),
        ("config/train.py", "return bool(set(values)", "return not (set(values)", set()),
        ("memory/prediction.py", "count, 3, *(side", "count, 4, *(side", set()),
        ("lora/attach.py", "set_scale(NAME, scale)", "set_scale(NAME, 1.0)", {"sample"}),
        ("choices.py", "sdlora.stages.evaluate.ssim:SSIM", "sdlora.stages.evaluate.psnr:PSNR_DB", set()),
        ("stages/report/templates/page.html", "<h1>", "<h1 class='x'>", {"report", "compare"}),
        ("records.py", "indent=1", "indent=2", {*STAGES} - {"flip"}),  # it writes no such JSON
        ("stages/train/optimizers.py", "_without_waits().AdamW8bit", "_without_waits().Adam8bit", {"train"}),
        # entries that are not chosen
        ("stages/train/optimizers.py", "_without_waits().Lion", "_without_waits().Lion8bit", set()),
        ("models/sdxl.py", "class StableDiffusionXL", "class Other", set()),
        ("stages/train/noise.py", "total / total.std()", "total", set()),
    ],
)
def test_what_an_edit_makes_stale(
    package: Path,
    entries: dict[str, list[str]],
    unchanged: dict[str, str],
    file: str,
    before: str,
    after: str,
    changed: set[str],
) -> None:
    edit(package / file, before, after)
    new = identities(package, entries)
    assert {stage for stage in STAGES if new[stage] != unchanged[stage]} == changed


NEIGHBOURS = (
    "stages/train/optimizers.py", "stages/train/noise.py", "stages/train/losses.py", "lora/types.py",
    "records.py", "images/pictures.py",
    "stages/evaluate/psnr.py", "models/family.py", "stages/scrape/source.py",
)  # fmt: skip


@pytest.mark.parametrize("file", NEIGHBOURS)
def test_a_new_function_makes_nothing_stale(
    package: Path, entries: dict[str, list[str]], unchanged: dict[str, str], file: str
) -> None:
    (package / file).write_text((package / file).read_text("utf-8") + NEW_FUNCTION, "utf-8")
    (package / file).with_name("brand_new.py").write_text(NEW_FUNCTION, "utf-8")
    assert identities(package, entries) == unchanged


def reach(folder: Path, **files: str) -> set[str]:
    """Labels reached from `start.py`, in a package made of the given files."""
    package = folder / "sdlora"
    package.mkdir()
    for name, text in files.items():
        (package / f"{name}.py").write_text(text, "utf-8")
    (folder / "start.py").write_text(files["start"], "utf-8")
    return {*Code(package=package).reach(folder / "start.py").digests}


LIBRARY = "import os\nA = 1\nB = A\nos.environ\n\ndef f():\n    return B\n\ndef g():\n    return A\n"


@pytest.mark.parametrize(
    ("start", "found"),
    [
        ("from sdlora import a\na.g()", {"a:g", "a:A", "a:"}),
        ("from sdlora.a import f\nf()", {"a:f", "a:B", "a:A", "a:"}),
        ("from sdlora.a import f as h\nx = h", {"a:f", "a:B", "a:A", "a:"}),
        ("def run():\n    from sdlora.a import g\n    g()\nrun()", {"a:g", "a:A", "a:"}),
        ("from sdlora import a\nprint(a)", {"a:f", "a:g", "a:B", "a:A", "a:"}),
        ("from sdlora import a\ndef run(a):\n    a.f()\nrun(1)", set()),
        ("from sdlora import a\ndef run():\n    x = [a for a in (1,)]\n    a.g()\nrun()", {"a:g", "a:A", "a:"}),
        ("from sdlora import a\ndef run(x: a.B):\n    pass\nrun(1)", {"a:B", "a:A", "a:"}),
        ("from sdlora import a\nclass X:\n    def go(self):\n        return a.g()\nX()", {"a:g", "a:A", "a:"}),
        ("from sdlora import a\ndef run():\n    def inner():\n        a = 1\n    a.g()\nrun()", {"a:g", "a:A", "a:"}),
        ("from sdlora.b import f\nf()", {"a:f", "a:B", "a:A", "a:"}),
        ("from sdlora.errors import f\nf()", set()),
    ],
)
def test_names_are_followed_as_python_reads_them(start: str, found: set[str], tmp_path: Path) -> None:
    labels = reach(tmp_path, start=start, a=LIBRARY, b="from sdlora.a import f\n", errors="def f():\n    pass\n")
    assert {label for label in labels if not label.startswith("start")} == found


def test_every_package_that_is_reached_is_known_by_its_version() -> None:
    menus = [menu for name, menu in vars(choices).items() if name.isupper() and isinstance(menu, dict)]
    everything = [entry for menu in menus for entry in menu.values()]
    for stage in STAGES:
        packages = Code().reach(ROOT / f"workflow/scripts/{stage}.py", everything).packages
        assert not packages & sys.stdlib_module_names
        unknown = {p for p in packages if makers.package_version(makers.distribution(p)) == "none"}
        assert not unknown, f"{stage}: name the distributions of {unknown} in makers.DISTRIBUTIONS"


def test_a_packages_version_counts_where_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = {}
    for optimizer in ("adamw", "prodigy", "lion"):
        jobs = plan.jobs(edited(tmp_path, ("optimizer: adamw8bit", f"optimizer: {optimizer}")))
        found[optimizer] = {job.stage: job.software for job in jobs if job.name == "a" or job.stage == "fit"}
    assert "prodigyopt" in found["prodigy"]["train"] and "prodigyopt" not in found["adamw"]["train"]
    assert "bitsandbytes" in found["lion"]["train"] and "bitsandbytes" not in found["adamw"]["train"]
    assert {"diffusers", "peft", "torch", "transformers"} <= found["adamw"]["sample"].keys()
    assert "diffusers" not in found["adamw"]["fit"] | found["adamw"]["evaluate"]


def test_what_was_read_is_remembered_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ROOT / "workflow/scripts/evaluate.py"
    first = Code(tmp_path / "code.json")
    identity = first.reach(script).identity
    first.save()
    with monkeypatch.context() as patch:
        patch.setattr("sdlora.flow.code._parse", lambda _: pytest.fail("nothing has changed, so nothing is parsed"))
        assert Code(tmp_path / "code.json").reach(script).identity == identity
    for damage in ("", "{", "[]", '{"format": 0, "files": {}}', '{"format": 1, "files": []}'):
        (tmp_path / "code.json").write_text(damage)
        assert Code(tmp_path / "code.json").reach(script).identity == identity


def test_what_a_null_means_is_part_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def trainings() -> dict[str, str]:
        changes = ("train: {rank: 4}", "train: {rank: 4, noise: [offset], weighting: min_snr}")
        return {job.name: job.digest() for job in plan.jobs(edited(tmp_path, changes)) if job.stage == "train"}

    before = trainings()
    for option in ("noise_offset", "snr_gamma", "huber_c"):
        monkeypatch.setitem(DEPENDENT, option, (*DEPENDENT[option][:2], 0.7))
    after = trainings()
    assert [name for name in before if before[name] != after[name]] == ["b"], "where it means something"
