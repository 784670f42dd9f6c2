"""Each rule says what a cluster must know of it: memory, time, and as many threads as its job computes with."""

import re

import pytest
from helpers import ROOT

from sdlora.flow.recipe import Recipe
from sdlora.stages.adopt.recipe import AdoptRecipe
from sdlora.stages.animate.recipe import AnimateRecipe
from sdlora.stages.caption.recipe import CaptionRecipe
from sdlora.stages.choose.recipe import ChooseRecipe
from sdlora.stages.encode.recipe import EncodeRecipe
from sdlora.stages.evaluate.recipe import Describing, EvaluateRecipe, Learning
from sdlora.stages.export.recipe import ExportRecipe
from sdlora.stages.probe.recipe import ProbeRecipe
from sdlora.stages.sample.recipe import SampleRecipe
from sdlora.stages.train.recipe import TrainRecipe

RULES = {
    name: text
    for path in sorted((ROOT / "workflow/rules").glob("*.smk"))
    for name, text in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", path.read_text("utf-8"), re.M)
}
#: Those that compute with torch, and how many threads their rule names; 1 where it names none.
COMPUTE: dict[type[Recipe], str] = {
    CaptionRecipe: "PARAMS.threads", EncodeRecipe: "PARAMS.threads", SampleRecipe: "PARAMS.threads",
    ChooseRecipe: "PARAMS.threads", EvaluateRecipe: "PARAMS.threads", AnimateRecipe: "PARAMS.threads",
    TrainRecipe: "threads_of_training", ProbeRecipe: "threads_of_training", ExportRecipe: "1", AdoptRecipe: "1",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in RULES if name != "unknown_version"])
def test_every_rule_states_memory_and_time(name: str) -> None:
    assert re.search(r"^    resources:\n(?:        .*\n)*        mem_mb=", RULES[name], re.M), RULES[name]
    assert re.search(r"^        runtime=\d+", RULES[name], re.M), RULES[name]


def test_the_rules_are_all_read() -> None:
    assert {"compare", "models", "base_quality", "train", "report_all"} <= RULES.keys() and len(RULES) == 20


@pytest.mark.parametrize("kind", COMPUTE, ids=lambda kind: kind.stage)
def test_a_rule_names_the_threads_that_its_job_computes_with(kind: type[Recipe]) -> None:
    declared = re.search(r"^    threads: (.+)$", RULES[kind.stage], re.M)
    assert (declared[1] if declared else "1") == COMPUTE[kind]
    of_metrics = (Learning, Describing) if kind is EvaluateRecipe else ()
    uses = any("threads" in one.model_fields for one in (kind, *of_metrics))
    assert uses == (COMPUTE[kind] != "1")
    if not uses:
        source = (ROOT / f"src/sdlora/stages/{kind.stage}/{kind.stage}.py").read_text("utf-8")
        assert "torch.set_num_threads(1)" in source
