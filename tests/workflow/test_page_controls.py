"""Every control of the page in the real Chromium, by mouse and by keyboard, on results that no DAG had to make.

A list opens by mouse; its entries lie in a window of the browser's own, so they are chosen by their first letter.
"""

import io
import json
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from browser import Page, count, needs_driver, page_of, text, visible
from PIL import Image
from scipy.stats import binomtest
from small_results import TRAINED, make_page, make_set, refuse

from sdlora.stages.report.dataset import LEFT_OUT, OPACITY

pytestmark = needs_driver
STEPS = (0, 2, 4)
FIRST = "#grid tbody tr:first-child td:nth-child({}) "
ACTIVE = "document.activeElement.id"
SHOWN = visible("#gallery figure")


@pytest.fixture(scope="module")
def served_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, str]]:
    """Two versions with a test and two seeds, on two sets, of which one has masks and much that was refused."""
    folder = tmp_path_factory.mktemp("controls")
    with chdir(folder):
        fitted = {name: make_set(Path("data/sets") / name, 64, masked=name == "masked") for name in ("masked", "other")}
        mine = refuse(Path("data/sets/masked"), 200)
        sets = {"a": fitted["masked"], "b": fitted["other"]}
        index = make_page(Path(), sets, STEPS, (42, 43), folders={"a": (mine,)})
        before, after = (f'"chosen_by":"{metric}"' for metric in ("psnr_db", "ssim"))
        written = index.read_text("utf-8")
        assert before in written
        index.with_name("by-ssim.html").write_text(written.replace(before, after), encoding="utf-8")
    with page_of(folder) as (page, address):
        yield page, f"{address}/results"


@pytest.fixture
def page(served_page: tuple[Page, str]) -> Page:
    page, address = served_page
    page.open(f"{address}/report/index.html", 1400)
    return page


def focus(page: Page, selector: str) -> None:
    page.run(f"document.querySelector({selector!r}).focus()")


def picture_of(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")


def test_a_cell_shows_the_metric_and_its_interval(page: Page) -> None:
    means = "#grid tr.means td:nth-child({})"
    assert count(page, means.format(4) + " .interval") == 1 and count(page, means.format(3) + " .interval") == 0
    shown = text(page, means.format(4)).split()
    assert float(shown[0]) > 0 and shown[1][0] in "+-" and shown[2][0] == "[" and shown[3][-1] == "]"
    told = page.run(f"document.querySelector({means.format(4) + ' span'!r}).title")
    assert "over the 5 references that report" in told and "95 % interval" in told
    cells = page.run("[...document.querySelectorAll('#grid tbody td:nth-child(4) button')].map((one) => one.innerText)")
    assert sum("over 4 seeds" in cell and "[" in cell for cell in cells) == 5 < len(cells), "of those that report"
    page.choose("#columns", "c")
    page.until("document.querySelectorAll('#grid thead th.chosen').length === 1")
    told = page.run(f"document.querySelector({means.format(4) + ' span'!r}).title")
    assert "over the 5 references that chose" in told and "not corrected for looking at 2 of them" in told


def test_the_figure_the_seed_and_the_columns_by_mouse_and_by_key(page: Page) -> None:
    span, image = (f"document.querySelector('{FIRST.format(4)} {one}')" for one in ("span", "img"))
    psnr, first = page.run(f"{span}.innerText"), page.run(f"{image}.src")
    page.choose("#figure", "s")
    page.until(f"document.querySelector('#figure').value === 'ssim' && {span}.innerText !== '{psnr}'")
    focus(page, "#figure")
    page.press("ArrowDown")
    page.until(f"{span}.innerText === '' && !document.querySelector('#grid tr.means')")
    page.choose("#seed", "43")
    page.until(f"document.querySelector('#seed').value === '43' && {image}.src !== '{first}'")
    focus(page, "#seed")
    page.press("ArrowUp")
    page.until(f"{image}.src === '{first}'")
    page.choose("#columns", "c")
    page.until("document.querySelectorAll('#grid thead th').length === 2 + 3")
    focus(page, "#columns")
    page.press("ArrowDown")
    page.until("document.querySelector('#columns').value === 'b'")


def test_a_picture_has_its_own_value_and_not_its_reference_s(page: Page) -> None:
    value = f"document.querySelector('{FIRST.format(4)} span').innerText.split(',')[0]"
    shown = [page.run(f"$('seed').value = '{seed}'; drawGrid(); {value}") for seed in (42, 43)]
    own = "Object.values(versionOf.a.metrics.psnr_db[4].by_picture)[0]"
    seeds = page.run(f"[42, 43].map((seed) => Object.values(versionOf.a.samples[4])[0][seed] && brief({own}[seed]))")
    assert shown == seeds and shown[0] != shown[1]


def test_two_pictures_are_compared_by_mouse_and_by_key(page: Page) -> None:
    page.click(FIRST.format(4) + "button")
    page.until("document.querySelector('#viewer').open")
    page.choose("#beside", "t")
    slider = "img-comparison-slider"
    page.until(f"document.querySelector('{slider}.rendered')")
    whole = f"[...document.querySelectorAll('{slider} img')].map((one) => one.complete && one.currentSrc.slice(-4))"
    page.until(f"{whole}.join() === '.png,.png'")  # the reference, too: beside its thumbnail blur would look right
    page.drag(slider, 0.5, 0.2)
    page.until(f"Math.abs(document.querySelector('{slider}').value - 20) < 5")
    focus(page, slider)
    page.hold("ArrowRight", 0.5)
    page.until(f"document.querySelector('{slider}').value > 25")
    page.click("#viewer .close")
    page.until("!document.querySelector('#viewer').open")
    focus(page, FIRST.format(4) + "button")
    page.press("Enter")
    page.until("document.querySelector('#viewer').open")
    before = text(page, "#viewer-title")
    page.run("$('beside').value = 'reference'; drawViewer()")
    focus(page, "#viewer .close")
    page.press("ArrowLeft")
    page.until(f"document.querySelector('#viewer-title').innerText !== '{before}'")
    assert page.run("$('beside').value") == "reference", "what it is compared with stays"
    press = "$('viewer').dispatchEvent(new MouseEvent('click', {{ detail: 1, clientX: {}, clientY: {} }}))"
    left, top = page.run("(({ left, top }) => [left, top])($('viewer').getBoundingClientRect())")
    page.run(press.format(left + 3, top + 3))
    assert page.run("$('viewer').open"), "its own margin"
    page.run(press.format(left - 3, top + 3))
    page.until("!$('viewer').open")
    page.click(FIRST.format(4) + "button")
    page.until("$('viewer').open")
    page.press("Escape")
    page.until("!document.querySelector('#viewer').open")


def test_a_picture_is_compared_with_pictures_of_its_seed(page: Page) -> None:
    """Whatever seed is asked for later; a third version has the first one's pictures, but none of seed 42."""
    page.run("""(() => {
        const without = (drawn) => Object.fromEntries(Object.entries(drawn).filter(([seed]) => seed !== "42").map(
            ([seed, [key, file, hash]]) => [seed, [key, `../a/${file}`, hash]]));
        const each = (of, change) => Object.fromEntries(Object.entries(of).map(([key, value]) => [key, change(value)]));
        versionOf.c = { ...versionOf.a, name: "c", samples: each(versionOf.a.samples, (step) => each(step, without)) };
        data.versions.push(versionOf.c);
    })()""")
    offered = "[...document.querySelector('#beside').options].map((one) => one.value)"
    files = "[...document.querySelectorAll('#viewer-picture img')].map((one) => one.src.slice(-10))"
    own = ["", "reference", "a/0", "a/2", "a/4"]
    for seed, others in (("42", []), ("43", ["c/0", "c/2", "c/4"])):
        page.run(f"$('seed').value = '{seed}'; drawGrid()")
        page.click(FIRST.format(5) + "button")  # behind what either has without its LoRA
        assert page.run(offered) == own + others
        page.run(f"$('beside').value = '{(own + others)[-1]}'; drawViewer()")
        assert page.run(files) == [f"seed{seed}.png"] * 2
        page.press("Escape")
        page.until("!document.querySelector('#viewer').open")
    page.click(".glance button")
    assert page.run(files) == ["seed42.png"], "as it was drawn, when 42 was asked for"


def test_the_grid_is_saved_as_one_picture(page: Page) -> None:
    page.click("#export")
    saved = page.downloaded()
    assert saved.name == "Versions, every version of masked at its chosen step.png"
    picture = picture_of(saved)
    assert picture.width == 8 + (150 + 8) + 3 * (128 + 8) and picture.height > 10 * 128
    assert len(picture.getcolors(picture.width * picture.height) or []) > 1000, "the pictures"
    labels = np.asarray(picture.crop((8, 0, 150, picture.height)).convert("L"))
    assert np.ptp(labels) > 150, "prompts beside them"
    page.choose("#columns", "c")
    page.until("document.querySelectorAll('#grid thead th').length === 2 + 3")
    focus(page, "#export")
    page.press("Enter")
    saved = page.downloaded()
    assert saved.name == "Versions, checkpoints of a.png"
    other = picture_of(saved)
    assert other.width == picture.width + 128 + 8, "one step more"


def test_a_grid_that_no_canvas_holds_is_saved_smaller(page: Page) -> None:
    row = "Array(columns).fill({ image: Object.values(data.thumbnails)[0], text: 'x' })"
    made = f"[1, 40].map((columns) => canvasOf('grid', Array(300).fill({row}), 128))"
    found = page.run(f"Promise.all({made}).then((all) => all.map((one) => [one.width, one.height]))")
    assert found[0][1] == 16000 and found[1][0] * found[1][1] <= 16e6 < 1.01 * found[1][0] * found[1][1]


def test_words_that_are_longer_than_a_line_go_on_in_the_next(page: Page) -> None:
    pen = "(() => { const pen = document.createElement('canvas').getContext('2d'); pen.font = FONT; return pen; })()"
    for said in ("\u8239\u9577" * 15, "a captain of" + 40 * "o"):
        lines = page.run(f"wrapped({pen}, {said!r}, 150)")
        assert len(lines) > 1 and "".join(lines).replace(" ", "") == said.replace(" ", "")
        assert page.run(f"Math.max(...{json.dumps(lines)}.map((line) => {pen}.measureText(line).width))") <= 150


def test_versions_beyond_the_colours_have_other_dashes(page: Page) -> None:
    assert len({*page.run("Array.from({ length: 36 }, (_, number) => JSON.stringify(styleFor(number)))")}) == 36


def test_the_comparison_is_saved_as_one_picture(page: Page) -> None:
    page.click(FIRST.format(4) + "button")
    page.choose("#beside", "t")
    page.until("document.querySelector('img-comparison-slider.rendered')")
    page.click("#export-viewer")
    saved = page.downloaded()
    assert saved.name == "Versions, reference beside a, step 4.png"
    pair = picture_of(saved)
    assert pair.width == 8 + 2 * (256 + 8)
    top = pair.height - 8 - 17 - 4 - 256  # margin, label, gap, picture
    halves = [np.asarray(pair.crop((left, top, left + 256, top + 256))).astype(int) for left in (8, 8 + 256 + 8)]
    assert np.abs(halves[0] - halves[1]).mean() > 1 and min(half.std() for half in halves) > 10, "two pictures"
    # a page that lies on a disk may not read the pixels of files beside it
    page.run("""(() => { const place = HTMLCanvasElement.prototype, own = place.toBlob;
        place.toBlob = () => { place.toBlob = own; throw new DOMException("tainted", "SecurityError"); }; })()""")
    focus(page, "#export-viewer")
    page.press("Enter")
    assert picture_of(page.downloaded()).width == pair.width


def test_padding_and_masks_are_shown_by_mouse_and_by_key(page: Page, tmp_path: Path) -> None:
    frame = "#gallery .framed"
    plain = seen(page, frame, tmp_path)
    page.click("#masks")
    page.until("!document.querySelector('#mask-note').hidden")
    assert text(page, "#mask-note").startswith("Striped: padding (8 pictures). Red: what a mask of the dataset")
    layered = seen(page, frame, tmp_path)
    down = [shown[:10].std(axis=0).mean() for shown in (plain, layered)]
    assert down[0] < 5 and down[1] > 60, "stripes on the padding, which repeats the edge"
    inner, left, right = slice(15, 80), slice(0, 40), slice(56, 96)
    assert np.abs(layered[inner, left] - plain[inner, left]).mean() < 3, "what is learnt stays as it is"
    coloured = OPACITY * np.array(LEFT_OUT) + (1 - OPACITY) * plain[inner, right]
    assert np.abs(layered[inner, right] - coloured).mean() < 10, "what the mask leaves out"
    focus(page, "#masks")
    page.press(" ")
    page.until("document.querySelector('#mask-note').hidden")
    assert np.abs(seen(page, frame, tmp_path) - plain).mean() < 1
    page.choose("#set", "o")
    page.until("document.querySelector('#set').value.includes('other')")
    page.click("#masks")
    assert "Red: what a mask of the dataset leaves out (0 pictures)" in text(page, "#mask-note")
    focus(page, "#set")
    page.press("ArrowUp")
    page.until("document.querySelector('#mask-note').innerText.includes('out (8 pictures)')")


def seen(page: Page, selector: str, folder: Path) -> np.ndarray:
    """An element as it looks, (h, w, 3)."""
    page.show(selector)
    page.until(f"[...document.querySelectorAll('{selector} img')].every((one) => one.complete)")
    page.screenshot(folder / "page.png")
    left, top, width, height = page.run(
        f"(({{ x, y, width, height }}) => [x + scrollX, y + scrollY, width, height].map(Math.round))"
        f"(document.querySelector({selector!r}).getBoundingClientRect())"
    )
    with Image.open(folder / "page.png") as whole:
        return np.asarray(whole.convert("RGB").crop((left, top, left + width, top + height))).astype(float)


def test_what_was_refused_and_what_stayed_lead_to_each_other(page: Page) -> None:
    assert text(page, "#refused summary") == "200 of 205 refused, and why"
    page.click("#refused summary")
    page.until("document.querySelector('#refused').open")
    assert count(page, "#refused li") == 200 and count(page, "#refused li > img") == 3
    page.click("#refused li .kept a")
    page.until(f"{ACTIVE} === document.querySelector('#gallery figure').id")
    page.click("#refused summary")
    page.until("!document.querySelector('#refused').open")
    group = "#gallery figure:first-child .alike"
    assert text(page, group).startswith("4 copies refused") and count(page, f"{group} a") == 4
    focus(page, f"{group} a")
    page.press("Enter")
    page.until(f"document.querySelector('#refused').open && {ACTIVE} === 'refused-0'")
    page.click("#find")
    page.type("no such word")
    page.until(f"{SHOWN} === 0")
    focus(page, "#refused li .kept a")
    page.press("Enter")
    page.until(f"{SHOWN} === 8 && {ACTIVE}.startsWith('picture-')")


def test_what_is_surely_worse_is_not_called_unresolved(page: Page) -> None:
    told = {"better": "yes", "worse": "no, worse", "unresolved": "unresolved", "untested": "unresolved"}
    told["by a person"] = "unresolved"
    headlines = {
        "better": "Better than without the LoRA", "worse": "Worse than without the LoRA",
        "unresolved": "Unresolved: these references show no sure difference",
        "untested": "Not tested: too few references", "by a person": "Chosen by a person",
    }  # fmt: skip
    for verdict, said in told.items():
        page.run(f"data.versions[0].verdict = {verdict!r}; $('verdicts').replaceChildren(); verdicts(); tables()")
        row = "[...document.querySelectorAll('#versions tbody tr:first-child td')].map((cell) => cell.innerText)"
        assert said in page.run(row)
        assert text(page, ".verdict .headline") == headlines[verdict]


def test_cards_of_many_versions_are_folded_where_they_lie_below_each_other(served_page: tuple[Page, str]) -> None:
    page, address = served_page
    many = "data.versions = Array(15).fill(data.versions[0]); $('verdicts').replaceChildren(); verdicts()"
    opened = "[...document.querySelectorAll('#verdicts .more')].map((card) => Number(card.open)).join('')"
    height = "document.querySelector('#verdicts').offsetHeight"
    page.open(f"{address}/report/index.html", 390)
    page.run(many)
    assert page.run(opened) == "111" + 12 * "0"
    assert page.run(f"document.querySelectorAll('.headline')[14].checkVisibility() && {height}") < 3600
    fold = ".verdict:nth-child(5) summary"
    page.click(fold)
    page.until(f"{opened}[4] === '1'")
    shown = "[4, 5, 6].map((n) => document.querySelector(`.verdict:nth-child(${n}) .rule`).checkVisibility())"
    assert page.run(shown) == [False, True, False]
    focus(page, fold)
    page.press("Enter")
    page.until(f"{opened}[4] === '0'")
    assert page.run(shown) == [False, False, False]
    page.open(f"{address}/report/index.html", 1400)
    page.run(many)
    assert page.run(opened) == 15 * "1" and not page.run(f"document.querySelector('{fold}').checkVisibility()")


def test_several_trainings_are_compared_under_their_own_steps(page: Page) -> None:
    figures = {"mean_one": "1", "mean_other": "2", "delta": "1", "ci_low": "0", "ci_high": "2", "p": "0.1"}
    row = {"metric": "ssim", "one": "a", "step_one": "2 4 4", "other": "base", "step_other": "0", **figures}
    page.run(f"data.compared = [{json.dumps({**row, 'better': 'a', 'note': 'several trainings each'})}]; comparison()")
    heads = page.run("[...document.querySelectorAll('#comparison th')].map((head) => head.innerText)")
    assert heads[1:3] == ["a, 3 trainings at steps 2, 4, 4", "no LoRA"]


@pytest.mark.parametrize(("place", "metrics"), [("index", ["psnr_db", "ssim"]), ("by-ssim", ["ssim", "psnr_db"])])
def test_what_chose_comes_first_among_the_columns(
    served_page: tuple[Page, str], place: str, metrics: list[str]
) -> None:
    page, address = served_page
    page.open(f"{address}/report/{place}.html", 1400)
    heads = "[...document.querySelectorAll('{} th')].map((head) => head.innerText)"
    measured = [head for metric in metrics for head in (metric, "against step 0")]
    about = ["version", "chosen step", "tested on", "better than step 0"]
    assert page.run(heads.format("#versions")) == [*about, *measured, "rank"], "no column of remarks that nobody wrote"
    assert page.run("[...document.querySelectorAll('#checkpoints th')].map((head) => head.textContent)") == [
        "version", "step", *measured
    ]  # fmt: skip
    titles = page.run("[...document.querySelectorAll('#plots h3')].map((head) => head.innerText)")
    assert titles == [*metrics, "loss, moving mean", "learning_rate"]


def brightness(colour: str) -> int:
    """Sum of the channels of rgb(r, g, b)."""
    return sum(map(int, colour[4:-1].split(",")))


def test_the_page_is_dark_where_its_reader_s_system_is(page: Page) -> None:
    """Curves, too, whose axes are drawn by a script: behind them lies the page's own colour."""
    drawn = "document.querySelector('#plots canvas').toDataURL()"
    colours = "(({ color, backgroundColor }) => [color, backgroundColor])(getComputedStyle(document.body))"
    ink, paper, curve = *page.run(colours), page.run(drawn)
    page.scheme("dark")
    try:
        page.until(f"{drawn} !== {json.dumps(curve)}")
        dark_ink, dark_paper = map(brightness, page.run(colours))
    finally:
        page.scheme("light")
    light_ink, light_paper = map(brightness, (ink, paper))
    assert dark_ink > 600 > 100 > dark_paper and light_paper > 600 > 150 > light_ink
    page.until(f"{drawn} === {json.dumps(curve)}")


def test_remarks_warnings_and_one_training_each_are_told(page: Page) -> None:
    assert text(page, "#note").startswith("Of versions, one training each: differences between versions include the")
    page.run("data.versions[0].settings.remark = '<b>best</b> so far'; tables()")
    assert page.run("[...document.querySelectorAll('#versions th')].at(-1).innerText") == "remark"
    assert page.run("document.querySelector('#versions tbody td:last-child').innerText") == "<b>best</b> so far"
    page.run("data.versions[0].best.warnings = ['its samples copy']; $('verdicts').replaceChildren(); verdicts()")
    assert text(page, ".verdict .warning") == "its samples copy."


def test_votes_are_ranked_as_votes_jsonl_s_are(page: Page) -> None:
    shares = [(0, 1), (2, 2), (18, 20), (5, 9), (400, 1000)]
    bounds = [binomtest(won, of).proportion_ci(0.95, method="wilson").low for won, of in shares]
    assert page.run(f"{json.dumps(shares)}.map(([won, of]) => wilson(won, of))") == pytest.approx(bounds, abs=1e-4)
    page.run("""(() => {
        const [a, b, c] = candidates.map(([name]) => name);
        const [reference, seeds] = Object.entries(split(a)[0].samples[0])[0];
        const of = { id: "x", reference, seed: Object.keys(seeds)[0] };
        const seen = (name) => sampleFor(split(name), of)[2];
        const vote = (winner, loser) => ({ ...of, winner, loser, pictures: [winner, loser].map(seen) });
        votes.push({ ...vote(a, b), winner: "constructor/1", loser: "constructor/2" }); // of a version that is gone
        votes.push(vote(a, b), ...Array(9).fill(vote(c, b)), vote(b, c));
        drawTally();
        $("standings").open = true;
        votes.length = 0;
    })()""")
    rows = (
        "[...document.querySelectorAll('#tally tbody tr')].map((row) => row.innerText.split('\\t').slice(1, 3).join())"
    )
    assert page.run(rows) == ["9,10", "1,1", "1,11"], "nine of ten before one of one"


def test_a_picture_says_its_licence_and_leads_to_its_page(page: Page) -> None:
    link = "#gallery figure:first-child a[target]"
    for address, links in (("https://example.org/a", 1), ("javascript:alert(1)", 0)):
        row = {"engine": "bing", "licence": "CC BY 4.0", "page": address}
        page.run(f"Object.assign(data.datasets[$('set').value].pictures[0], {json.dumps(row)})")
        page.run("delete GALLERIES[$('set').value]; drawDataset()")
        assert "bing, licence: CC BY 4.0" in text(page, "#gallery figure:first-child figcaption")
        assert page.run(f"[...document.querySelectorAll({link!r})].map((one) => one.href)") == [address] * links


def test_v10_is_sorted_behind_v9(page: Page) -> None:
    page.run("[data.versions[0].name, data.versions[1].name] = ['v9', 'v10']; tables()")
    names = "[...document.querySelectorAll('#versions tbody td:first-child')].map((cell) => cell.innerText).join()"
    seen = []
    for _ in range(2):
        page.click("#versions th:first-child")
        seen.append(page.run(names))
    assert sorted(seen) == ["v10,v9", "v9,v10"] and seen[0] != seen[1]
    assert page.run("document.querySelector('#versions th').ariaSort") == "descending"
    assert seen[0] == "v9,v10", "from the first to the last"


def test_the_curve_of_the_loss_is_a_moving_mean(page: Page) -> None:
    """Centred, over a twentieth of the log's rows; at its ends over those that are there."""
    loss = np.random.default_rng(3).random(100).round(6).tolist()
    mean = [float(np.mean(loss[max(0, place - 2) : place + 3])) for place in range(100)]
    assert page.run(f"smoothed({json.dumps(loss)})") == pytest.approx(mean)
    assert page.run("[smoothed([]), smoothed([3]), smoothed([1, 2, 4])]") == [[], [3], [1, 2, 4]]
    log = {"step": [*range(1, 101)], "loss": loss, "learning_rate": loss}
    page.run(f"data.versions[0].log = {json.dumps(log)}; hidden.add('b'); drawCurves()")
    plots = "[...document.querySelectorAll('#plots .plot')]"
    place = int(page.run(f"{plots}.findIndex((plot) => plot.innerText.startsWith('loss, moving mean'))"))
    value = f"document.querySelectorAll('#plots .plot')[{place}].querySelectorAll('.u-value')"
    page.run(f"{plots}[{place}].focus()")
    page.press("ArrowRight")
    page.until(f"{value}[0].innerText === '1'")
    assert float(page.run(f"{value}[1].innerText")) == pytest.approx(mean[0], rel=1e-3)


def test_tables_are_sorted_by_key(page: Page) -> None:
    names = "[...document.querySelectorAll('#versions tbody td:first-child')].map((cell) => cell.innerText).join()"
    focus(page, "#versions th:first-child")
    page.press("Enter", "Enter")
    page.until(f"{names} === 'b,a'")


def test_curves_say_their_values_by_mouse_and_by_key(page: Page) -> None:
    plot = "#plots .plot:first-child"
    values = f"[...document.querySelectorAll('{plot} .u-value')].map((one) => one.innerText)"
    assert page.run(values)[1:] == ["", ""] or page.run(values)[1:] == ["--", "--"]
    page.hover(f"{plot} .u-over", 0.98)
    page.until(f"{values}[0] === '4' && {values}.slice(1).every((one) => Number(one) > 0)")
    page.hover("h1")
    page.until(f"{values}[1] === ''")
    focus(page, plot)
    page.press("ArrowRight")
    page.until(f"{values}[0] === '0' && Number({values}[1]) > 0")
    first, second = page.run(values)[1:]
    assert text(page, f"{plot} .aloud[aria-live]") == f"step 0, a {first}, b {second}"
    page.press("ArrowRight", "ArrowRight", "ArrowLeft")
    page.until(f"{values}[0] === '2'")
    focus(page, "#curve-controls input")
    page.press(" ")
    page.until("document.querySelectorAll('#plots .plot:first-child .u-series').length === 2")


def test_versions_of_another_dataset_have_a_grid_of_their_own(page: Page) -> None:
    names = page.run("[...document.querySelectorAll('#columns option')].map((one) => one.value)")
    seen = []
    for name in [name for name in names if name.startswith("*")]:
        page.run(f"document.querySelector('#columns').value = {name!r}")
        page.run("document.querySelector('#columns').dispatchEvent(new Event('change'))")
        seen.append(text(page, "#grid thead tr").split("\t")[3].partition(",")[0])
        assert count(page, "#grid tbody td") == count(page, "#grid tbody td button") > 0, "no cell is empty"
    assert seen == ["a", "b"]


def test_what_each_version_draws_without_its_lora_can_be_voted_on(page: Page) -> None:
    """Of one base it is the same picture, of which neither is nearer to the reference."""
    for side in "ab":
        offered = page.run(f"[...document.querySelector('#vote-{side}').options].map((one) => one.value)")
        assert offered == ["a/0", "a/2", "a/4", "b/0", "b/2", "b/4"]
    page.choose("#vote-a", "b")
    page.run("$('vote-b').value = 'b/4'; drawBallot()")
    assert count(page, "#ballot figure") == 3 and page.run("pair.names.toSorted()") == ["b/0", "b/4"]
    page.run("$('vote-b').value = 'a/0'; drawBallot()")
    assert count(page, "#ballot figure") == 0 and "different pictures" in text(page, "#ballot")


def test_votes_by_mouse_and_by_key_are_saved(page: Page) -> None:
    for side, key in (("a", "ArrowDown"), ("b", "ArrowUp")):
        page.choose(f"#vote-{side}", "b")
        page.until(f"document.querySelector('#vote-{side}').value === 'b/0'")
        focus(page, f"#vote-{side}")
        page.press(key)
    sides = [page.run(f"document.querySelector('#vote-{side}').value") for side in "ab"]
    assert sides == ["b/2", "a/4"]
    page.until("[...document.querySelectorAll('#ballot img')].every((one) => one.currentSrc.endsWith('.png'))")
    for number in (1, 3):  # the reference stands between them
        page.click(f"#ballot figure:nth-child({number}) button")
    page.press("1")  # where the mouse was, and again where that was
    page.press("2")
    page.until("document.querySelector('#tally').innerText.includes('4 new')")
    for more in ("repeat", "altKey", "ctrlKey", "metaKey"):  # held down, or a command of the browser's
        page.run(f"$('vote').dispatchEvent(new KeyboardEvent('keydown', {{ key: '1', {more}: true }}))")
    assert "4 new" in text(page, "#tally")
    page.click("#tally a")
    saved = page.downloaded()
    focus(page, "#tally a")
    page.press("Enter")
    assert page.downloaded().read_bytes() == saved.read_bytes()
    rows = [json.loads(line) for line in saved.read_text("utf-8").splitlines()]
    assert saved.name == "new-votes.jsonl" and len(rows) == 4
    assert all({row["winner"], row["loser"]} == {*sides} for row in rows)
    assert len({row["id"] for row in rows}) == 4, "so that a file that is added twice counts once"


def test_votes_outlive_the_page_until_they_are_recorded_or_discarded(served_page: tuple[Page, str]) -> None:
    page, address = served_page
    kept, said = "localStorage.getItem('sdlora-votes')", "document.querySelector('#tally').innerText"
    page.open(f"{address}/report/index.html", 1400)
    page.run("localStorage.setItem('sdlora-votes', '[null, 3, {}]')")  # whatever else may be there
    for number in (1, 2):
        page.open(f"{address}/report/index.html", 1400)
        page.click("#ballot figure:nth-child(1) button")
        page.until(f"{said}.includes('{number} new')")
    drawn_anew = f"JSON.stringify(JSON.parse({kept}).map((one) => ({{ ...one, pictures: ['x', 'y'] }})))"
    whole = page.run(kept)
    page.run(f"localStorage.setItem('sdlora-votes', {drawn_anew})")
    page.open(f"{address}/report/index.html", 1400)
    assert "new" not in page.run(said), "a vote is tied to the pictures it was cast on"
    page.run(f"localStorage.setItem('sdlora-votes', {json.dumps(whole)})")
    page.run(f"votes.length = 0; data.votes.push(JSON.parse({kept})[0]); recallVotes()")
    assert page.run("votes.length") == 1 == page.run(f"JSON.parse({kept}).length"), "the other is in votes.jsonl"
    page.open(f"{address}/report/index.html", 1400)
    page.click("#tally button")
    page.until(f"{said} === '' && {kept} === '[]'")
    assert page.run("document.activeElement.closest('#ballot') !== null"), "keys go on from there"
    leave = "dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    page.run("Storage.prototype.setItem = () => { throw new DOMException('no'); }")
    assert page.run(leave), "nothing is lost"
    page.click("#ballot figure:nth-child(1) button")
    page.until(f"{said}.includes('keeps nothing')")
    assert not page.run(leave)
    focus(page, "#tally button")
    page.press("Enter")
    page.until(f"{said} === ''")
    assert page.run(leave), "or the browser would ask before the next page"


def test_links_and_folds_by_mouse_and_by_key(page: Page) -> None:
    page.press("Tab")
    page.until("document.activeElement.matches('nav a')")
    page.click("nav a[href='#dataset']")
    page.until("location.hash === '#dataset'")
    focus(page, "nav a[href='#vote']")
    page.press("Enter")
    page.until("location.hash === '#vote'")
    for fold in ("#numbers details", "#as-reported", "#refused"):
        page.click(f"{fold} summary")
        page.until(f"document.querySelector('{fold}').open")
        focus(page, f"{fold} summary")
        page.press(" ")
        page.until(f"!document.querySelector('{fold}').open")
    focus(page, "#find")
    page.type("no such word")
    page.until(f"{SHOWN} === 0")
    focus(page, ".glance button")
    page.press("Enter")
    page.until("document.querySelector('#viewer').open")
    size = "fetch(document.querySelector('#viewer-file').href).then((answer) => answer.headers.get('content-type'))"
    assert page.run(size) == "image/png"
    page.press("Escape")
    page.click(FIRST.format(2) + "button")
    assert "pad/pictures/" in page.run("document.querySelector('#viewer-file').href"), "a reference has a file, too"
    assert page.run(size) == "image/png"


@pytest.mark.parametrize("width", [390, 1400])
def test_all_fits_and_nothing_leaves_the_machine(served_page: tuple[Page, str], width: int) -> None:
    page, address = served_page
    page.open(f"{address}/report/index.html", width)
    for selector in ("#masks", "#refused summary"):
        page.click(selector)
    for summary in range(count(page, "details")):
        page.run(f"document.querySelectorAll('details')[{summary}].open = true")
    assert page.run("document.documentElement.scrollWidth") <= width
    page.click(FIRST.format(4) + "button")
    page.choose("#beside", "t")
    for selector in ("#export", "#masks", "#set", "#export-viewer", "#viewer-file"):
        box = f"document.querySelector('{selector}').getBoundingClientRect()"
        left, right = page.run(f"(({{ left, right }}) => [left, right])({box})")
        assert 0 <= left < right <= width, selector
    assert page.run("document.documentElement.scrollWidth") <= width
    assert all(name.startswith((address.removesuffix("results"), "blob:")) for name in page.asked())


#: Whether the chosen column lies within the window, and nothing of it under the picture that has the focus.
IN_SIGHT = """(() => {
  const { left, right } = document.querySelector("#grid th.chosen").getBoundingClientRect();
  const cell = document.activeElement.closest("td")?.getBoundingClientRect();
  return left >= 0 && right <= innerWidth && (!cell || Math.abs(cell.left - left) < 1 || cell.right <= left + 1);
})()"""


def test_three_versions_of_thirteen_checkpoints_are_small_and_painted_with_little_work(tmp_path: Path) -> None:
    """Real pictures as large as a thumbnail may be; versions share those without a LoRA alone."""
    fitted = make_set(tmp_path / "data/sets/small", 128)
    file = make_page(tmp_path, dict.fromkeys("abc", fitted), [*range(0, 1300, 100)])
    assert file.stat().st_size <= 15e6
    with page_of(tmp_path / "results") as (page, address):
        before = page.cpu_seconds()
        page.open(f"{address}/report/index.html", 1400)
        page.until("performance.getEntriesByName('first-contentful-paint').length")
        assert 0.01 < page.cpu_seconds() - before < 0.5, "s of one core: a fifth of it where this was written"
        drawn = 3 * (12 * 5 + 5 * 4) + 5 + 5 * 4
        assert page.run("Object.keys(data.thumbnails).length") >= drawn + 10 + TRAINED
        assert page.run("data.versions.map((version) => version.steps.length)") == [13, 13, 13]
        for width in (1400, 390):
            page.open(f"{address}/report/index.html", width)
            page.choose("#columns", "c")
            page.run("document.documentElement.style.scrollBehavior = 'auto'")
            assert page.run("document.querySelector('#grid').clientWidth > innerWidth")
            page.run("document.querySelector('#grid tbody td button').focus()")
            for _ in range(12):
                assert page.run(IN_SIGHT), "the chosen step is what a reader looks for"
                page.press("ArrowRight")
