"""Whatever a user writes into params.yaml: a plan, or a sentence that says where and why; never a traceback."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, SMALL
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from sdlora.config.load import load
from sdlora.config.train import MENUS
from sdlora.errors import SdloraError
from sdlora.flow import inputs, plan

pytestmark = pytest.mark.slow

START: dict[str, Any] = YAML(typ="safe").load(SMALL)
START["datasets"]["small"]["sources"][0]["path"] = "data/embedded/captain"
START["datasets"]["web"] = {
    "sources": [{"kind": "bing", "query": "cat", "limit": 5}, {"kind": "hub", "repository": "a/b"}],
    "trigger": "cat", "held_out": 2, "scrape": {"min_side_px": 64},
}  # fmt: skip
START["presets"] = {"mine": {"train": {"noise": ["offset"], "ema": {"decay": 0.9}}}}
START["defaults"] |= {"flip": {"probability": 0.5}, "caption": {"num_beams": 2}, "encode": {"dtype": "bf16"}}
START["versions"]["a"] |= {"preset": "mine", "fit": {"method": "bucket", "bucket_step_px": 16}}
START["versions"]["a"]["train"] |= {"loss": "huber", "huber_c": 0.2, "text_encoder": {"rank": 2}}

Place = tuple[str | int, ...]
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2000), st.sampled_from([0.0, -1.5, 1e30, float("inf"), float("nan")]),
    st.floats(0, 2), st.text(max_size=12), st.sampled_from(["pad", "huber", "offset", "1e-4", "../x", "a b"]),
    st.just([]), st.just({}), st.lists(st.integers(0, 9), max_size=3),
)  # fmt: skip


def places(node: Any, above: Place = ()) -> Iterator[Place]:
    """Every key and index of a tree."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield (*above, key)
        yield from places(value, (*above, key))


def at(tree: Any, place: Place) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def near(value: Any) -> st.SearchStrategy[Any]:
    """A value that may well be allowed in the place of another."""
    words = [*MENUS["loss"], *MENUS["optimizer"], *MENUS["lora_type"], "ddim", "edge", "blur", "pad", "none", "ram"]
    if isinstance(value, bool):
        return st.just(not value)
    if isinstance(value, int):
        return st.integers(1, 64)
    if isinstance(value, float):
        return st.floats(0.01, 0.99)
    return st.sampled_from(words) if isinstance(value, str) else st.just(value)


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """The settings after one to three changes: another value, a value from elsewhere, a key gone, renamed or new."""
    tree = copy.deepcopy(START)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from([*places(tree)]))
        above, key = at(tree, place[:-1]), place[-1]
        kind = draw(st.sampled_from(["near", "near", "near", "odd", "elsewhere", "gone", "renamed", "new"]))
        if kind == "near":
            above[key] = draw(near(above[key]))
        elif kind == "odd":
            above[key] = draw(ODD)
        elif kind == "elsewhere":
            above[key] = copy.deepcopy(at(tree, draw(st.sampled_from([*places(tree)]))))
        elif kind == "gone" or isinstance(above, list):
            del above[key]
        elif kind == "renamed":
            above[draw(st.text(min_size=1, max_size=8))] = above.pop(key)
        else:
            above[draw(st.sampled_from(["rank", "steps", "kind", "path", "hires", "nonsense"]))] = draw(ODD)
        if not tree:
            break
    return tree


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the code, the models and the pictures, in which this process stands."""
    folder, before = tmp_path_factory.mktemp("project"), Path.cwd()
    for name in ("models", "workflow", "data"):
        (folder / name).symlink_to(ROOT / name)
    os.chdir(folder)
    yield folder
    os.chdir(before)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck], database=None)
@given(tree=mutated())
def test_a_plan_or_a_sentence(project: Path, tree: dict[str, Any]) -> None:
    path = project / "params.yaml"
    with path.open("w", encoding="utf-8") as handle:
        YAML(typ="safe", pure=True).dump(tree, handle)
    try:
        params = load(path)
        inputs.check(params)
        assert plan.jobs(params)
        event("planned")
    except SdloraError as error:
        assert str(error).strip()
        event("refused")
