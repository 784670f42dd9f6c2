"""Batches: their order, buckets, repeats, sizes, and that accumulation is a larger batch."""

from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_set import captain, edited, examples_of, make_set, picture_id
from torch import Tensor
from training import settings, small_base

from sdlora.config.params import Fit, Flip
from sdlora.errors import DataError, ParamsError
from sdlora.flow import plan
from sdlora.stages.flip.flip import repeats_of
from sdlora.stages.flip.recipe import FlipRecipe
from sdlora.stages.train.batch import draw_batch, sizes_of
from sdlora.stages.train.dataset import BatchOrder, Example, Geometry, chosen
from sdlora.stages.train.loop import Run, loss_of, train_loop
from sdlora.stages.train.run import prepare

SHAPES = {"wide": (4, 12, 22), "tall": (4, 22, 12), "square": (4, 16, 16)}


def latents(name: str, shape: tuple[int, int, int] = (4, 16, 16), repeats: int = 1) -> Example:
    source = torch.Generator().manual_seed(len(name))
    return Example(name, (torch.randn(shape, generator=source),), (torch.zeros(shape),), ("captain",), repeats=repeats)


def mixed() -> list[Example]:
    """Five wide, two tall, one square."""
    counts = {"wide": 5, "tall": 2, "square": 1}
    return [latents(f"{kind}{n}", SHAPES[kind]) for kind, count in counts.items() for n in range(count)]


def test_one_bucket_is_the_stream_cut_into_pieces() -> None:
    order = BatchOrder.of([latents(f"p{n}") for n in range(5)], 42, 2)
    drawn = [draw for number in range(10) for draw in order.draws(number)]
    assert drawn == [(draw, chosen(42, draw, 5)) for draw in range(20)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7])
def test_a_batch_holds_one_bucket_and_is_full(batch_size: int) -> None:
    examples = mixed()
    order = BatchOrder.of(examples, 1, batch_size)
    for number in range(200):
        batch = [examples[place] for _, place in order.draws(number)]
        assert len(batch) == batch_size and len({example.bucket for example in batch}) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7])
def test_every_picture_is_drawn_equally_often(batch_size: int) -> None:
    examples = mixed()
    order = BatchOrder.of(examples, 1, batch_size)
    seen: Counter[int] = Counter()
    draws: set[tuple[int, int]] = set()
    epochs = 3 * batch_size  # a whole number of batches of every bucket
    for number in range(3 * len(examples)):
        for draw, place in order.draws(number):
            seen[place] += 1
            draws.add((draw, place))
    assert seen == dict.fromkeys(range(len(examples)), epochs)
    assert len(draws) == epochs * len(examples), "no noise is drawn twice"


@pytest.mark.parametrize("batch_size", [2, 3, 5])
def test_what_an_epoch_leaves_over_is_carried(batch_size: int) -> None:
    examples = mixed()
    order = BatchOrder.of(examples, 1, batch_size)
    seen: Counter[int] = Counter()
    for number in range(300):
        seen.update(place for _, place in order.draws(number))
        epochs = (number + 1) * batch_size / len(examples)
        # never more than an epoch and a batch from where it should be
        assert all(abs(seen[place] - epochs) <= 1 + batch_size for place in range(len(examples)))
    assert max(seen.values()) - min(seen.values()) <= batch_size


def test_the_order_is_a_function_of_seed_and_number() -> None:
    one, again, other = (BatchOrder.of(mixed(), seed, 3) for seed in (1, 1, 2))
    forwards = [one.draws(number) for number in range(50)]
    assert [again.draws(number) for number in reversed(range(50))] == forwards[::-1]
    assert [other.draws(number) for number in range(50)] != forwards


def test_buckets_come_mixed() -> None:
    examples = mixed()
    order = BatchOrder.of(examples, 1, 1)
    kinds = [examples[order.draws(number)[0][1]].bucket for number in range(8)]
    assert Counter(kinds) == {SHAPES["wide"]: 5, SHAPES["tall"]: 2, SHAPES["square"]: 1}
    assert kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)


def test_repeats_are_draws_per_epoch() -> None:
    examples = [latents("once"), latents("thrice", repeats=3)]
    order = BatchOrder.of(examples, 1, 1)
    for epoch in range(5):
        drawn = [order.draws(number)[0] for number in range(4 * epoch, 4 * epoch + 4)]
        assert Counter(place for _, place in drawn) == {0: 1, 1: 3}
        assert len(set(drawn)) == 4, "each draw of a picture has its own noise"


NAMES = ["a.png", "hat/b.png", "hat/far/c.png", "3_coat/d.png", "2_x/5_y/e.png"]


def test_repeats_by_subfolder() -> None:
    assert list(repeats_of(NAMES, {}).values()) == [1] * 5
    assert list(repeats_of(NAMES, {"hat": 2, "hat/far/": 4}).values()) == [1, 2, 4, 1, 1]
    assert list(repeats_of(NAMES, "kohya").values()) == [1, 1, 1, 3, 5]
    with pytest.raises(DataError, match=r"no training picture lies in 'hta'; did you mean hat"):
        repeats_of(NAMES, {"hta": 2})
    for names in (["a.png", "hat/b.png"], ["0_a/b.png"]):
        with pytest.raises(DataError, match=r"datasets.<name>.kohya_repeats: kohya needs .* names such as 3_hat"):
            repeats_of(names, "kohya")


def test_repeats_are_said_once(tmp_path: Path) -> None:
    trigger = "trigger: captain\n"
    with pytest.raises(ParamsError, match="repeats and kohya_repeats both say"):
        edited(tmp_path, (trigger, f"{trigger}    repeats: {{hat: 2}}\n    kohya_repeats: true\n"))
    with pytest.raises(ParamsError, match=r"datasets\.small\.repeats\.hat: 0 is not allowed"):
        edited(tmp_path, (trigger, f"{trigger}    repeats: {{hat: 0}}\n"))


def test_repeats_reach_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trigger = "trigger: captain\n"
    found = []
    for line in ("", "    repeats: {train: 2}\n", "    kohya_repeats: true\n"):
        jobs = plan.jobs(edited(tmp_path, (trigger, trigger + line)))
        found += [job.repeats for job in jobs if isinstance(job, FlipRecipe)]
    assert found == [{}, {"train": 2}, "kohya"]


def test_repeats_reach_the_examples(tmp_path: Path) -> None:
    pictures = {"hat/a.png": captain(1), "b.png": captain(2)}
    folder = make_set(tmp_path, pictures, repeats={"hat": 3}, encode=False)
    assert {example.id: example.repeats for example in examples_of(folder, "none")} == {
        picture_id(0): 3,
        picture_id(1): 1,
    }


def run_on(examples: list[Example], **changes: object) -> Run:
    return prepare(settings(**changes), Flip(probability=0.5), small_base(), examples)


def bucketed(tmp_path: Path) -> list[Example]:
    shapes = {"a.png": (112, 64), "b.png": (64, 112), "c.png": (64, 64), "d.png": (110, 64), "e.png": (64, 110)}
    pictures = {name: captain(n, size) for n, (name, size) in enumerate(shapes.items(), start=1)}
    return examples_of(make_set(tmp_path, pictures, Fit(method="bucket", size_px=64)))


def lora_of(run: Run) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in run.parameters]


@pytest.mark.slow
def test_buckets_train_and_resume_exactly(tmp_path: Path) -> None:
    examples = bucketed(tmp_path)
    train = {"batch_size": 2, "accumulation": 2, "steps": 4, "checkpoint_every": 2}
    states = []
    straight = run_on(examples, **train)
    train_loop(straight, None, lambda state: states.append(deepcopy(state)))
    resumed = run_on(examples, **train)
    train_loop(resumed, states[0], lambda state: None)
    assert all(map(torch.equal, lora_of(straight), lora_of(resumed)))
    shapes = {draw_batch(straight, step, part).latents.shape[-2:] for step in range(4) for part in (0, 1)}
    assert len(shapes) > 1, "the run saw more than one bucket"


def gradients(run: Run) -> list[Tensor]:
    for part in range(run.settings.accumulation):
        (loss_of(run, draw_batch(run, 0, part)) / run.settings.accumulation).backward()
    return [parameter.grad.clone() for parameter in run.parameters if parameter.grad is not None]


@pytest.mark.slow
def test_accumulation_is_a_larger_batch(tmp_path: Path) -> None:
    pictures = {"a.png": captain(1), "b.png": captain(2), "c.png": captain(3, (64, 64)), "d.png": captain(4)}
    examples = examples_of(make_set(tmp_path, pictures))
    apart, together = (
        gradients(run_on(examples, batch_size=size, accumulation=parts)) for size, parts in ((2, 3), (6, 1))
    )
    assert len(apart) == len(together) > 0 and any(grad.abs().max() > 1e-4 for grad in together)
    for one, other in zip(apart, together, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def test_the_mean_or_a_draw_of_the_posterior(tmp_path: Path) -> None:
    examples = examples_of(make_set(tmp_path, {"a.png": captain(1)}, mirror=False))
    mean, sample = (run_on(examples, latents=kind) for kind in ("mean", "sample"))
    first, second = (draw_batch(mean, step, 0) for step in (0, 1))
    assert torch.equal(first.latents, second.latents) and torch.equal(first.latents[0], examples[0].mean[0])
    drawn = [draw_batch(sample, step, 0) for step in range(200)]
    assert torch.equal(drawn[0].noise, first.noise), "the noise does not depend on the option"
    deviation = torch.cat([(batch.latents[0] - examples[0].mean[0]) / examples[0].std[0] for batch in drawn])
    assert deviation.mean().abs() < 0.01 and abs(deviation.std() - 1) < 0.01


def test_sizes_are_the_pictures_own() -> None:
    places = (
        Geometry((88, 48), (0, 0, 86, 48), (1600, 893), (0, 0)),
        Geometry((64, 64), (0, 0, 64, 64), (90, 30), (64, 0)),
    )
    pair = [(replace(latents("a"), geometry=(place,)), 0) for place in places]
    sizes = sizes_of(pair)
    assert sizes is not None
    # original height and width, top and left of the crop, height and width of the fitted picture
    assert sizes.tolist() == [[893, 1600, 0, 0, 48, 88], [30, 90, 0, 64, 64, 64]]
    assert sizes_of([*pair, (latents("b"), 0)]) is None
