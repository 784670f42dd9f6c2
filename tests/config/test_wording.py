"""What a user mistypes is told in the words of the file, and with what to write instead."""

from pathlib import Path

import pytest
from helpers import ROOT, shipped_with_v8

from sdlora import records
from sdlora.config.load import load
from sdlora.errors import ParamsError

SOURCE = "sources: [{kind: folder, path: x}], trigger: x"


def refused(folder: Path, section: str, name: str, said: str) -> str:
    """What is said of the shipped settings with one entry more, without the file's name and line."""
    text = shipped_with_v8().replace(f"\n{section}:\n", f"\n{section}:\n  {name}: {said}\n")
    records.write_text(folder / "params.yaml", text)
    with pytest.raises(ParamsError) as caught:
        load(folder / "params.yaml")
    return str(caught.value).partition(": ")[2]


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("{sample: {seeds: 42}}", "sample.seeds: 42 is not allowed: a list is wanted: [42]"),
        ("{evaluate: {metrics: psnr}}", "evaluate.metrics: 'psnr' is not allowed: a list is wanted: ['psnr']"),
        ("{lora: {version: v8, step: 600}}", "versions.mine.lora: a list is wanted: [ and ] around it"),
        ("{base: true}", "versions.mine.base: true is not allowed: a text is wanted: 'true'"),
        ("{train: {noise: [[offset]]}}", "train.noise.0: ['offset'] is not allowed: a text is wanted"),
        ("{train: {learning_rate: '1e-4'}}", "'1e-4' is not allowed: a number is wanted: 1e-4, without quotes"),
        ("{train: {learning_rate: '1,5e-4'}}", "train.learning_rate: '1,5e-4' is not allowed: a number is wanted"),
        ("{train: {steps: 1e3}}", "train.steps: 1000.0 is not allowed: a whole number is wanted: 1000"),
        ("{train: {max_grad_norm: .inf}}", "train.max_grad_norm: inf is not allowed: input should be a finite number"),
        ("{train: {shuffle_tags: yes}}", "train.shuffle_tags: 'yes' is not allowed: write true or false"),
        ("{train: {betas: [0.9, 0.99, 0.1]}}", "train.betas: [0.9, 0.99, 0.1] is not allowed: at most 2 wanted"),
        ("{evaluate: {metrics: []}}", "evaluate.metrics: [] is not allowed: at least 1 wanted"),
        ("{sample: {hires: true}}", "hires: true is not allowed: a section is wanted, with keys such as factor, "),
        ("{sample: {hires: true}}", "; {} has the default of each"),
        ("{sample: {hires: false}}", "; null is none"),
        ("{train: null}", "train: null is not allowed: a section is wanted, with keys such as lora_type, rank"),
        ("{train: 'rank:4'}", "; a space belongs behind the colon"),
        ("{rank: 4}", "versions.mine.rank: unknown key; it belongs below train"),
        ("{train: {lora_scale: 0.9}}", "versions.mine.train.lora_scale: unknown key; it belongs below sample"),
        ("{sample: {seed: 42}}", "versions.mine.sample.seed: unknown key; did you mean seeds?"),
        ("{caption: {by: none}}", "nothing is said of a picture; set prune_shared_tags: null beside it"),
        (
            "{caption: {batch_size: 0}}",
            "batch_size: 0 is not allowed: input should be greater than or equal to 1",
        ),
        ("{fit: {fill: null}}", "a colour needs quotes, such as '#ffffff': a bare # begins a comment"),
        ("{fit: {fill: '#FFFFFF'}}", "'#FFFFFF' is not a fill; choices: edge, blur or a colour in small letters"),
    ],
)
def test_a_version(tmp_path: Path, version: str, said: str) -> None:
    assert said in refused(tmp_path, "versions", "mine", version)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("{sources: x, trigger: x}", "datasets.mine.sources: 'x' is not allowed: a list is wanted"),
        ("{sources: [x], trigger: x}", "a section is wanted, such as {kind: folder, path: data/mine}"),
        ("{sources: [{path: x}], trigger: x}", "sources.0: kind is missing; choices: folder, bing, selenium, hub"),
        ("{sources: [{kind: bnig}], trigger: x}", "sources.0: kind is 'bnig'; did you mean bing?"),
        ("{sources: [{kind: hub, repository: x}], trigger: x}", "'x' is not allowed: owner/name is wanted, as the"),
        ("{sources: [{kind: folder, path: x}], trigger: 42}", "datasets.mine.trigger: 42 is not allowed: a text is"),
        ("{sources: [{kind: folder, path: x}], trigger: ' '}", "datasets.mine.trigger: the trigger is blank"),
        (f"{{{SOURCE}, held_out: 0.2}}", "datasets.mine.held_out: held_out is 0.2; a number of pictures or a subf"),
        (f"{{{SOURCE}, repeats: 3}}", "datasets.mine.repeats: 3 is not allowed: a section is wanted"),
    ],
)
def test_a_dataset(tmp_path: Path, dataset: str, said: str) -> None:
    found = refused(tmp_path, "datasets", "mine", dataset)
    assert said in found
    assert "\n" not in found, "one mistake is told once"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("a b", "{}", "versions.a b: 'a b' is not allowed: a name has letters from a to z, digits"),
        ("train", "{rank: 4}", "versions.train.rank: unknown key; it belongs below train"),
    ],
)
def test_a_name(tmp_path: Path, name: str, value: str, said: str) -> None:
    assert said in refused(tmp_path, "versions", name, value)


@pytest.mark.parametrize(
    ("entry", "above"), [("{train: {rank: 4}}", "versions"), (f"{{{SOURCE}, flip: false}}", "datasets")]
)
def test_an_entry_that_is_not_indented(tmp_path: Path, entry: str, above: str) -> None:
    file = tmp_path / "params.yaml"
    records.write_text(file, (ROOT / "params.yaml").read_text("utf-8") + f"mine: {entry}\n")
    with pytest.raises(ParamsError, match=rf": mine: unknown key; did you mean to indent it, below {above}\?$"):
        load(file)


@pytest.mark.parametrize(
    ("added", "line", "said"),
    [
        ("\tv: 1", 3, "not valid YAML: a tab; indent with spaces"),
        ("a: 1\nb: 2\na: 3", 5, 'the key "a" is there twice in one section; keep one of them'),
        (
            "a: {b: 1\nc: 2",
            4,
            "not valid YAML: expected ',' or '}', but got ':', while parsing a flow mapping that begins",
        ),
        ('a: "C:\\pictures"', 3, "between double quotes a backslash begins an escape: take single quotes"),
    ],
)
def test_what_breaks_the_file_is_told_on_one_line_with_its_place(
    tmp_path: Path, added: str, line: int, said: str
) -> None:
    file = tmp_path / "params.yaml"
    records.write_text(file, f"base: tiny\ndataset: captain\n{added}\n")
    with pytest.raises(ParamsError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert said in str(caught.value) and "\n" not in str(caught.value)
