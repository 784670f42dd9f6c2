"""Masks: what of a picture is learnt, and that the rest has no gradient at all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_set import captain, edited, examples_of, make_set, noise, picture_id
from torch import Tensor
from training import settings, small_base

from sdlora import records
from sdlora.config.params import Fit, Flip
from sdlora.errors import DataError, ParamsError
from sdlora.flow import inputs, plan
from sdlora.images import masks
from sdlora.images.pictures import png_bytes
from sdlora.stages.fit.fit import BILINEAR, KEPT, fit_picture
from sdlora.stages.train.batch import draw_batch
from sdlora.stages.train.dataset import Example, Geometry
from sdlora.stages.train.latents import with_masks
from sdlora.stages.train.loop import Run, loss_of, train_loop
from sdlora.stages.train.losses import masked_mean
from sdlora.stages.train.run import prepare


def run_on(folder: Path, flip: float = 0.0, **changes: object) -> Run:
    return prepare(settings(**changes), Flip(probability=flip), small_base(), examples_of(folder))


def gradient_of_prediction(run: Run) -> tuple[Tensor, Tensor]:
    """(gradient of the loss with respect to the prediction, the batch's mask)."""
    batch = draw_batch(run, 0, 0)
    kept = []
    predict = run.model.predict

    def watched(*inputs: object) -> Tensor:
        kept.append(predict(*inputs))  # type: ignore[arg-type]
        kept[0].retain_grad()
        return kept[0]

    run.model.predict = watched  # type: ignore[method-assign]
    loss_of(run, batch).backward()
    assert kept[0].grad is not None and batch.mask is not None
    return kept[0].grad, batch.mask


def test_masked_mean_is_the_mean_of_what_is_learnt() -> None:
    source = torch.Generator().manual_seed(0)
    error = torch.rand(3, 4, 5, 6, generator=source)
    mask = torch.zeros(3, 1, 5, 6)
    mask[:, :, 1:3] = 1
    expected = error[:, :, 1:3].mean(dim=(1, 2, 3))
    assert torch.allclose(masked_mean(error, mask), expected)
    assert torch.equal(masked_mean(error, None), error.mean(dim=(1, 2, 3)))
    # a sample's loss does not depend on how much of its batch mates is learnt
    mask[0] = 1
    assert torch.allclose(masked_mean(error, mask)[1:], expected[1:])
    grey = torch.where(mask > 0, 0.25, 0.5)
    assert torch.allclose(masked_mean(error, grey), masked_mean(error, grey * 2))


@pytest.mark.parametrize(
    ("box", "size", "shape"),
    [((0, 14, 64, 37), (64, 64), (16, 16)), ((3, 0, 58, 64), (64, 64), (16, 16)), ((0, 1, 88, 46), (88, 48), (12, 22))],
)
def test_coverage_is_by_area(box: tuple[int, int, int, int], size: tuple[int, int], shape: tuple[int, int]) -> None:
    pixels = Image.new("L", size)
    pixels.paste(255, (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    expected = masks.at_latents(pixels, shape)
    assert np.allclose(masks.coverage(box, size, shape), expected, atol=1e-6)
    assert expected.mean() == pytest.approx(box[2] * box[3] / (size[0] * size[1]))


def test_padded_cells_have_no_gradient(tmp_path: Path) -> None:
    folder = make_set(tmp_path, {"wide.png": captain(1)}, mirror=False)
    grad, mask = gradient_of_prediction(run_on(folder, mask="padding"))
    assert mask.shape == (1, 1, 16, 16)
    rows = mask[0, 0, :, 0]
    # 64 x 37 px from row 13: cells of 4 px, so rows 4 to 11 are whole, 3 and 12 in part
    assert rows[:3].eq(0).all() and rows[13:].eq(0).all() and rows[4:12].eq(1).all()
    assert 0 < rows[3] < 1 and 0 < rows[12] < 1
    outside = (mask == 0).expand_as(grad)
    assert grad[outside].eq(0).all()
    assert grad[~outside].ne(0).all()


def test_the_mask_changes_the_loss_and_none_learns_the_borders(tmp_path: Path) -> None:
    folder = make_set(tmp_path, {"wide.png": captain(1)}, mirror=False)
    losses = {}
    for kind in ("padding", "none"):
        run = run_on(folder, mask=kind)
        batch = draw_batch(run, 0, 0)
        losses[kind] = loss_of(run, batch).item()
        assert (batch.mask is None) == (kind == "none")
    assert losses["padding"] != losses["none"]


def test_a_picture_without_padding_has_no_mask(tmp_path: Path) -> None:
    folder = make_set(tmp_path, {"square.png": captain(1, (64, 64))}, mirror=False)
    run = run_on(folder, mask="padding")
    assert draw_batch(run, 0, 0).mask is None
    assert (
        loss_of(run, draw_batch(run, 0, 0)).item() == loss_of(run_on(folder, mask="none"), draw_batch(run, 0, 0)).item()
    )


def test_a_batch_masks_each_picture_for_itself(tmp_path: Path) -> None:
    pictures = {"a.png": captain(1, (64, 64)), "b.png": captain(2), "c.png": captain(3, (64, 112))}
    batch = draw_batch(run_on(make_set(tmp_path, pictures, mirror=False), batch_size=3), 0, 0)
    assert batch.mask is not None and batch.mask.shape == (3, 1, 16, 16)
    shares = sorted(batch.mask.mean(dim=(1, 2, 3)).tolist())
    assert shares == pytest.approx([37 / 64, 37 / 64, 1.0])


def test_pictures_that_lie_alike_share_their_mask() -> None:
    """A mask of its own for each picture and side would be 3 GB for 100,000 pictures of 512 px."""
    places = [((0, top, 64, 64 - 2 * top), (0, top, 64, 64 - 2 * top)) for top in (3, 14)]
    examples = [
        Example(
            str(n), (), (), ("", ""), geometry=tuple(Geometry((64, 64), box, (64, 64), (0, 0)) for box in places[n % 2])
        )
        for n in range(100)
    ]
    found = with_masks(examples, "padding", 4)
    assert len({mask.data_ptr() for example in found for mask in example.mask if mask is not None}) == 2
    alone = [with_masks([example], "padding", 4)[0] for example in examples]
    for one, other in zip(found, alone, strict=True):
        assert one.mask[0] is not None and other.mask[0] is not None and torch.equal(one.mask[0], other.mask[0])


def half_masks(folder: Path, pictures: dict[str, Image.Image], value: int = 255) -> None:
    """Masks that show the left half of each picture."""
    for name, picture in pictures.items():
        mask = Image.new("L", picture.size)
        mask.paste(value, (0, 0, picture.width // 2, picture.height))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        mask.save((folder / name).with_suffix(".png"))


def test_a_users_mask_leaves_out_what_is_black_and_the_padding(tmp_path: Path) -> None:
    pictures = {"sub/a.png": captain(1)}
    half_masks(tmp_path / "masks", pictures)
    folder = make_set(tmp_path, pictures, masks=str(tmp_path / "masks"), mirror=False)
    grad, mask = gradient_of_prediction(run_on(folder, mask="user"))
    assert mask[0, 0, 8, :7].eq(1).all(), "left half of the picture"
    assert mask[0, 0, :, 9:].eq(0).all(), "right half"
    assert mask[0, 0, :3].eq(0).all(), "padding"
    assert grad[(mask == 0).expand_as(grad)].eq(0).all()
    assert grad[(mask == 1).expand_as(grad)].ne(0).all()


def test_grey_is_a_weight(tmp_path: Path) -> None:
    pictures = {"a.png": captain(1, (64, 64))}
    half_masks(tmp_path / "masks", pictures, value=51)
    folder = make_set(tmp_path, pictures, masks=str(tmp_path / "masks"), mirror=False)
    mask = draw_batch(run_on(folder, mask="user"), 0, 0).mask
    assert mask is not None and mask[0, 0, 0, 0].item() == pytest.approx(0.2)


@pytest.mark.parametrize("method", ["pad", "center_crop", "bucket"])
def test_a_mask_is_fitted_with_its_pictures_geometry(tmp_path: Path, method: str) -> None:
    source = noise(150, 64)
    mask = Image.new("L", source.size, 255)
    fit = Fit(method=method, size_px=64)
    shown, hidden = fit_picture(source, fit), fit_picture(mask, fit, BILINEAR)
    assert hidden.picture.size == shown.picture.size and (hidden.box, hidden.corner) == (shown.box, shown.corner)
    left, top, width, height = shown.box
    inside = np.asarray(hidden.picture)[top : top + height, left : left + width]
    assert inside.min() == 255 and int(np.asarray(hidden.picture, np.int64).sum()) == 255 * inside.size
    # a mark in the picture and the same mark in its mask come out at the same place
    marked, white = Image.new("RGB", source.size), Image.new("L", source.size)
    for one, colour in ((marked, (255, 255, 255)), (white, 255)):
        one.paste(colour, (70, 20, 90, 40))
    seen = np.asarray(fit_picture(marked, fit).picture)[..., 0] > 127
    kept = np.asarray(fit_picture(white, fit, BILINEAR).picture) > 127
    assert (seen != kept).mean() < 0.01


def test_a_mirrored_picture_has_a_mirrored_mask(tmp_path: Path) -> None:
    pictures = {"a.png": captain(1, (65, 112))}  # 37 px wide in 64: 13 to the left, 14 to the right
    half_masks(tmp_path / "masks", pictures)
    folder = make_set(tmp_path, pictures, masks=str(tmp_path / "masks"))
    plain, mirrored = (
        {row["mirrored"]: row for row in records.read_jsonl(folder / "train/metadata.jsonl")}[m] for m in (False, True)
    )
    assert plain["box"][0] + mirrored["box"][0] + plain["box"][2] == 64
    stored = [masks.read_fitted(folder / "train-masks" / row["file_name"]) for row in (plain, mirrored)]
    assert np.array_equal(np.asarray(stored[0])[:, ::-1], np.asarray(stored[1]))
    for kind in ("padding", "user"):
        example = run_on(folder, mask=kind).examples[0]
        assert example.mask[0] is not None and example.mask[1] is not None
        assert torch.equal(example.mask[0].flip(-1), example.mask[1])
        assert not torch.equal(example.mask[0], example.mask[1])
    drawn = draw_batch(run_on(folder, flip=1.0, mask="user"), 0, 0).mask
    assert drawn is not None and torch.equal(drawn[0], example.mask[1])


def test_alpha_is_a_mask(tmp_path: Path) -> None:
    picture = captain(1, (64, 64)).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((64, 64)).point(lambda v: 255 if v > 127 else 0))
    folder = make_set(tmp_path, {"a.png": picture}, masks="alpha", mirror=False)
    mask = draw_batch(run_on(folder, mask="user"), 0, 0).mask
    assert mask is not None and mask[0, 0, 0].eq(0).all() and mask[0, 0, 15].eq(1).all()


def bad(name: str, where: Path) -> None:
    if name == "missing":
        return
    if name == "twice":
        Image.new("L", (64, 64), 255).save(where / "a.webp")
    image = Image.new("L", (32, 64) if name == "mis-sized" else (64, 64), 0 if name == "black" else 255)
    image.save(where / "a.png")
    if name == "damaged":
        (where / "a.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", r"sub/a\.png: a picture needs one mask in .*masks.*there is none; looked for .*sub/a"),
        ("mis-sized", r"masks/sub/a\.png: the mask is 32 x 64 px, but its picture sub/a\.png is 64 x 64 px"),
        ("black", r"masks/sub/a\.png: the mask is black all over"),
        ("damaged", r"masks/sub/a\.png: not a readable picture"),
        ("twice", r"a picture needs one mask in .*a\.png and .*a\.webp"),
    ],
)
def test_a_bad_mask_is_named(tmp_path: Path, name: str, said: str) -> None:
    where = tmp_path / "masks" / "sub"
    where.mkdir(parents=True)
    bad(name, where)
    with pytest.raises(DataError, match=said):
        make_set(tmp_path, {"sub/a.png": captain(1, (64, 64))}, masks=str(tmp_path / "masks"), encode=False)


def test_pictures_of_one_name_have_masks_by_their_ids(tmp_path: Path) -> None:
    """One of that name would be learnt with for all of them."""
    pictures = {"a.png": captain(1, (64, 64)), "a.webp": captain(2, (64, 64))}
    where = tmp_path / "masks"
    half_masks(where, {"a.png": pictures["a.png"]})
    for _ in pictures:
        with pytest.raises(DataError, match="2 pictures are called so, and a mask of that name would") as refused:
            make_set(tmp_path, pictures, masks=str(where), encode=False)
        Image.new("L", (64, 64), 255).save(where / f"{str(refused.value).rpartition(' ')[2]}.png")
    make_set(tmp_path, pictures, masks=str(where), encode=False)


def test_a_mask_that_a_crop_takes_away_is_named(tmp_path: Path) -> None:
    pictures = {"a.png": captain(1, (192, 64))}
    half_masks(tmp_path / "masks", pictures)
    mask = Image.new("L", (192, 64), 0)
    mask.paste(255, (0, 0, 40, 64))
    mask.save(tmp_path / "masks/a.png")
    crop = Fit(size_px=64, method="center_crop")
    with pytest.raises(DataError, match=r"a\.png: nothing that its mask learns is left after fit\.method: center_crop"):
        make_set(tmp_path, pictures, crop, masks=str(tmp_path / "masks"), encode=False)


def test_a_picture_without_alpha_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: masks: alpha needs an alpha channel"):
        make_set(tmp_path, {"a.png": captain(1)}, masks="alpha", encode=False)


def test_a_changed_mask_is_fitted_again_and_a_removed_one_is_gone(tmp_path: Path) -> None:
    pictures = {"a.png": captain(1), "b.png": captain(2)}
    half_masks(tmp_path / "masks", pictures)
    folder = make_set(tmp_path, pictures, masks=str(tmp_path / "masks"), encode=False)
    before = records.read_json(folder / KEPT)
    half_masks(tmp_path / "masks", {"a.png": captain(1)}, value=128)
    make_set(tmp_path, pictures, masks=str(tmp_path / "masks"), encode=False)
    after = records.read_json(folder / KEPT)
    assert before[picture_id(0)] != after[picture_id(0)] and before[picture_id(1)] == after[picture_id(1)]
    assert np.asarray(masks.read_fitted(folder / f"train-masks/{picture_id(0)}.png")).max() == 128
    make_set(tmp_path, pictures, encode=False)
    assert not [*folder.glob("*masks/*")]


def test_training_without_the_masks_says_so(tmp_path: Path) -> None:
    folder = make_set(tmp_path, {"a.png": captain(1)}, mirror=False)
    with pytest.raises(
        DataError, match=rf"{picture_id(0)}\.png: train\.mask is user, but this picture was fitted without a mask"
    ):
        run_on(folder, mask="user")


def test_user_needs_masks_and_masks_need_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"a\.train\.mask: 'user' is not allowed: datasets\.small\.masks is not set"):
        edited(tmp_path, ("rank: 2", "rank: 2, mask: user"))
    params = edited(tmp_path, ("trigger: captain\n", "trigger: captain\n    masks: no/such/folder\n"))
    with pytest.raises(DataError, match=r"datasets\.small\.masks: there is no folder 'no/such/folder'"):
        inputs.check(params)


def test_masks_are_part_of_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the hashes are remembered

    def recipes(*changes: tuple[str, str]) -> dict[Path, str]:
        return {job.made: job.digest() for job in plan.jobs(edited(tmp_path, *changes))}

    def changed(before: dict[Path, str], after: dict[Path, str]) -> list[str]:
        return sorted(str(path) for path in before if before[path] != after[path])

    assert changed(recipes(), recipes(("rank: 2", "rank: 2, mask: none"))) == [
        "results/a/made/export.json",
        "results/a/made/train.json",
    ]
    folder = ("trigger: captain\n", "trigger: captain\n    masks: masks\n")
    found = []
    for value in (255, 128):
        records.write_bytes(Path("masks/a.png"), png_bytes(Image.new("L", (4, 4), value)))
        found.append(recipes(folder))
    assert changed(*found) == ["data/sets/small/pad-edge-64/made/fit.json"]


def half_padded(folder: Path) -> Path:
    """One picture of 64 x 32 px in 64 x 64: no latent cell is both picture and padding."""
    return make_set(folder, {"wide.png": captain(1, (64, 32))}, mirror=False)


@pytest.mark.slow
def test_the_floor_is_what_cells_outside_the_mask_weigh(tmp_path: Path) -> None:
    folder = half_padded(tmp_path)

    def loss(**changes: object) -> float:
        run = run_on(folder, **changes)
        return loss_of(run, draw_batch(run, 0, 0)).item()

    everywhere, inside = loss(mask="none"), loss(mask="padding")
    outside = 2 * everywhere - inside  # half of the cells are padding
    for floor in (0.1, 0.3):
        expected = (inside + floor * outside) / (1 + floor)
        assert loss(mask="padding", mask_floor=floor) == pytest.approx(expected, rel=1e-5)
    assert loss(mask="padding", mask_floor=0.0) == inside
    assert loss(mask="padding", mask_floor=1.0) == everywhere, "to the last bit"


def test_the_floor_raises_what_a_users_mask_leaves_out_and_keeps_what_it_weighs(tmp_path: Path) -> None:
    pictures = {"a.png": captain(1, (64, 64))}
    half_masks(tmp_path / "masks", pictures, value=51)
    folder = make_set(tmp_path, pictures, masks=str(tmp_path / "masks"), mirror=False)
    mask = draw_batch(run_on(folder, mask="user", mask_floor=0.1), 0, 0).mask
    assert mask is not None
    assert mask[0, 0, 0, 0].item() == pytest.approx(0.2) and mask[0, 0, 0, 15].item() == pytest.approx(0.1)
    grad, _ = gradient_of_prediction(run_on(folder, mask="user", mask_floor=0.1))
    assert grad.ne(0).all()


@pytest.mark.slow
def test_the_floor_changes_what_is_learnt(tmp_path: Path) -> None:
    folder = half_padded(tmp_path)

    def learnt(**changes: object) -> list[bytes]:
        run = run_on(folder, steps=2, checkpoint_every=2, **changes)
        train_loop(run, None, lambda state: None)
        return [p.detach().numpy().tobytes() for p in run.parameters]

    found = {floor: learnt(mask="padding", mask_floor=floor) for floor in (0.0, 0.1, 1.0)}
    assert found[0.0] == learnt(mask="padding")
    assert found[1.0] == learnt(mask="none")
    assert len({b"".join(parts) for parts in found.values()}) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("mask_floor: 1.5", r"a\.train\.mask_floor.* 1"),
        ("mask_floor: -0.1", r"a\.train\.mask_floor.* 0"),
        ("mask: none, mask_floor: 0.1", r"mask_floor has no effect with mask: none"),
    ],
)
def test_a_floor_that_cannot_be_is_refused(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        edited(tmp_path, ("rank: 2", f"rank: 2, {change}"))
