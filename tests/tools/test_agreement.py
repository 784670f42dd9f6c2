"""What a metric is worth, on checkpoints whose truth is planted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tools.tiny_base import agreement, identity, world
from tools.tiny_base.characters import CHARACTERS, portrait
from tools.tiny_base.world import Picture

from sdlora import records
from sdlora.errors import DataError
from sdlora.flow.hashing import sha256_of
from sdlora.images.pictures import png_bytes
from sdlora.stages.report.votes import Vote

pytestmark = pytest.mark.slow

CAPTAIN = CHARACTERS["captain"]
COLUMNS = (*agreement.ABOUT, "psnr_db", "effnet_lite0_distance", "ssim")


def drawn_as(picture: Picture, right: bool) -> bytes:
    """A reference as a perfect checkpoint draws it, or without its patch."""
    wanted = picture if right else CAPTAIN.without_mark(picture)
    return png_bytes(Image.fromarray(portrait(wanted, CAPTAIN.aspect, 64)))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of a version, with none, half and all of four references right, and step 0 of another.

    PSNR follows the truth, and so does the distance, which falls; SSIM goes the other way.
    """
    folder = tmp_path_factory.mktemp("agreement")
    pictures = list(identity.references(CAPTAIN).items())[:4]
    names = [{"id": f"r{n}", "name": name} for n, (name, _) in enumerate(pictures)]
    records.write_jsonl(folder / "manifest.jsonl", names)
    for version, steps in (("v8", (0, 100, 200)), ("v9", (0,))):
        rows = []
        for step in steps:
            for n, (_, picture) in enumerate(pictures):
                file, right = f"samples/step-{step:06d}/r{n}-seed42.png", n < step / 50
                records.write_bytes(folder / version / file, drawn_as(picture, right))
                rows.append(["validation", step, f"r{n}", 42, file, 10 + n + right, 0.9 - right / 2, 0.5 - right / 4])
        records.write_csv(folder / version / "pictures.csv", COLUMNS, rows)
    return folder


def vote(project: Path, reference: str, winner: int, loser: int) -> Vote:
    sides = (winner, loser)
    files = [project / f"v8/samples/step-{step:06d}/{reference}-seed42.png" for step in sides]
    seen = [sha256_of(file)[:12] for file in files]
    return Vote(reference, "42", f"v8/{winner}", f"v8/{loser}", (seen[0], seen[1]))


def test_a_metric_agrees_with_the_truth_as_far_as_it_orders_checkpoints_so(project: Path) -> None:
    text = agreement.run(CAPTAIN, project / "manifest.jsonl", [project / "v8", project / "v9"], [])
    cells = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in text.splitlines() if line.startswith("| ")}
    assert cells["psnr_db"][0].startswith("+1.00") and cells["effnet_lite0_distance"][0].startswith("+1.00")
    assert cells["ssim"][0].startswith("-1.00"), "it prefers what is wrong"
    assert cells["psnr_db"][1] == "the same everywhere", "the hair is right in every picture"
    assert "3 checkpoints of 2 trainings" in text, "the base is drawn once, whichever version drew it"
    assert "votes" not in text


def test_checkpoints_of_equal_totals_are_tied() -> None:
    """Whichever references the thirds lie at: their means differ in the last bit."""
    truth = np.array([[0, 0, 3, 3], [0, 2, 3, 1]]) / 3
    assert len({*truth.mean(axis=1)}) == 2
    metric = np.array([[1.0] * 4, [2.0] * 4])
    assert np.isnan(agreement.tau(metric, truth)) and np.isnan(agreement.tau(truth, metric))


def test_a_vote_is_for_the_measure_that_prefers_its_winner(project: Path) -> None:
    votes = [vote(project, "r0", 200, 0), vote(project, "r3", 200, 100), vote(project, "r1", 0, 200)]
    unseen = Vote("r0", "42", "v8/200", "v8/0", ("0" * 12, "1" * 12))
    text = agreement.run(CAPTAIN, project / "manifest.jsonl", [project / "v8"], [*votes, unseen])
    lines = [line for line in text.splitlines() if line.startswith("| ") and line.count("|") == 3]
    said = {line.split(" | ")[0][2:]: line.split(" | ")[1] for line in lines}
    assert "Of 3 blind votes" in text
    assert said["psnr_db"].startswith("+0.33 [") and said["ssim"].startswith("-0.33 [")
    assert said["mark_on_head"].startswith("+0.33 [") and said["hair_on_head"].startswith("+0.00")


def test_what_is_of_another_dataset_is_left_out(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    style = tmp_path / "study-style"
    file = "samples/step-000000/x-seed42.png"
    records.write_bytes(style / file, png_bytes(Image.new("RGB", (64, 64))))
    records.write_csv(style / "pictures.csv", COLUMNS, [["validation", 0, "x", 42, file, 1, 1, 1]])
    text = agreement.run(CAPTAIN, project / "manifest.jsonl", [project / "v8", style], [])
    assert "of 1 trainings" in text and "study-style is not of captain: left out" in capsys.readouterr().err
    with pytest.raises(DataError, match="no version is of captain"):
        agreement.run(CAPTAIN, project / "manifest.jsonl", [style], [])
    with pytest.raises(DataError, match="nothing is not measured: there is no pictures"):
        agreement.run(CAPTAIN, project / "manifest.jsonl", [tmp_path / "nothing"], [])


def test_the_interval_over_references_covers_what_it_promises() -> None:
    """Checkpoints of some worth, which references see with errors of their own; its expectation is the truth."""

    def tables(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        worth = random.normal(size=(40, 1))
        metric = worth * (1 + 0.5 * random.normal(size=5)) + random.normal(size=(40, 5))
        chance = 1 / (1 + np.exp(-1.5 * worth + random.normal(size=5)))
        return metric, random.binomial(2, chance) / 2

    random = np.random.default_rng(0)
    mean = np.mean([agreement.tau(*tables(random)) for _ in range(400)])
    found = [agreement.interval(agreement.tau, *tables(random)) for _ in range(200)]
    assert 0.88 <= np.mean([low <= mean <= high for _, low, high in found]) <= 1.0
    value, low, high = agreement.interval(agreement.tau, *(table[:, :1] for table in tables(random)))
    assert -1 <= value <= 1 and np.isnan(low) and np.isnan(high), "one reference has no interval"


def test_two_heads_are_no_single_one(project: Path, tmp_path: Path) -> None:
    """A sample with a second head of the character is right in two of three."""
    name, picture = next(iter(identity.references(CAPTAIN).items()))
    drawn = Image.fromarray(portrait(picture, CAPTAIN.aspect, 64))
    left, top, right, bottom = (4 * edge for edge in world.face_box(picture, 64))
    head = world.draw(picture, 256).crop((left - 8, max(0, top), right + 8, bottom))
    drawn.paste(head.resize((head.width // 5, head.height // 5)), (0, 38))
    path = tmp_path / "x.png"
    records.write_bytes(path, png_bytes(drawn))
    one = agreement.Drawn("v", "validation", 1, "r0", "42", path, sha256_of(path), {})
    (found,) = agreement.with_truths([one], CAPTAIN, {"r0": picture})
    assert found.values == {
        "mark_on_head": 1.0, "hair_on_head": 1.0, "one_head": 0.0, "all_three": pytest.approx(2 / 3),
    }, name  # fmt: skip
