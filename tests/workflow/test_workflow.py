"""The DAG with real Snakemake, DVC, BLIP, training and sampling: one test a claim."""

import re
import shutil
import signal

import pytest
from helpers import ROOT, Project, at_work, kill, kill_all_at_work, kill_trainings, slow_steps, wait_for
from power_cut import CUTS
from stage_server import Job

from sdlora import records
from sdlora.flow import freshness
from sdlora.flow.hashing import sha256_of

REPORTING = {"choose", "evaluate", "report", "report_all"}
DOWNSTREAM = {"train", "export", "sample", *REPORTING}


def test_everything_is_made(built: Project) -> None:
    table = records.read_csv(built.folder / "results/a/metrics.csv")
    assert [row["step"] for row in table if row["metric"] == "psnr_db"] == ["0", "2", "4"]
    assert [*table[0]] == ["step", "metric", "image1", "image2", "mean", "ci_low", "ci_high"], "no test, no part"
    assert built.read("results/a/test_samples/index.jsonl") == b""
    page = built.read("results/a/report/index.html").decode()
    assert "data:image/webp;base64," in page and '"steps":[0,2,4]' in page
    assert (built.folder / "results/report/index.html").exists()
    table = records.read_csv(built.folder / "results/report/versions.csv")
    assert [(row["version"], row["rank"]) for row in table] == [("a", "2"), ("b", "4")]
    best = records.read_json(built.folder / "results/a/best.json")
    assert int(table[0]["best_step"]) == best["best_step"]
    assert float(table[0]["ssim_delta"]) == pytest.approx(best["validation"]["figures"]["ssim"]["delta"], rel=1e-4)
    assert (table[0]["tested_on"], table[0]["verdict"]) == ("0", "untested") and "no independent test" in best["why"]


def test_the_page_over_all_makes_what_it_links_to(fresh: Project) -> None:
    planned = fresh.plan_list("results/report/index.html")
    assert planned.count("report") == 2 and planned.count("report_all") == 1


def test_a1111s_card_shows_a_sample(built: Project) -> None:
    for step in ("000002", "000004"):
        folder = built.folder / f"results/a/export/step-{step}"
        (preview,) = folder.glob("*.preview.png")
        assert preview.name == f"a-step{step}-comfyui-a1111.preview.png"
        assert (preview.parent / preview.name.replace("preview.png", "safetensors")).exists()
        drawn = sorted((built.folder / f"results/a/samples/step-{step}").glob("*.png"))
        assert preview.read_bytes() in [path.read_bytes() for path in drawn]
    preview.unlink()
    assert built.plan("results/a/report/index.html") == {"report"}


def test_second_run_has_nothing_to_do(built: Project) -> None:
    text = built.snakemake("-n", "all")
    assert "Nothing to be done" in text and "metadata" not in text and "kernels" not in text


def test_changing_a_version_reruns_only_that_version(built: Project) -> None:
    built.edit("params.yaml", "rank: 4", "rank: 8")
    assert built.plan_list("all") == sorted(DOWNSTREAM)
    assert "Nothing to be done" in built.snakemake("-n", "results/a/metrics.csv")


def test_setting_it_back_needs_nothing(built: Project) -> None:
    built.edit("params.yaml", "rank: 4", "rank: 8")
    built.plan("all")
    built.edit("params.yaml", "rank: 8", "rank: 4")
    assert not built.plan("all")


def test_old_results_come_back_without_training(built: Project) -> None:
    before = {name: built.read(f"results/b/{name}") for name in ("metrics.csv", "train_log.csv", "made/train.json")}
    built.edit("params.yaml", "rank: 4", "rank: 8")
    built.snakemake("results/b/metrics.csv")
    assert built.read("results/b/made/train.json") != before["made/train.json"]
    built.edit("params.yaml", "rank: 8", "rank: 4")
    text = built.snakemake("results/b/metrics.csv")
    assert "publishing run" in text
    assert {name: built.read(f"results/b/{name}") for name in before} == before


def test_only_the_newest_runs_are_kept(built: Project) -> None:
    built.edit("params.yaml", "keep_runs: 20", "keep_runs: 1")
    assert not built.plan("all"), "how many runs are kept says nothing about results"
    built.edit("params.yaml", "rank: 4", "rank: 8")
    built.snakemake("results/b/train_log.csv")
    assert len(list((built.folder / ".sdlora/store/train").iterdir())) == 1


@pytest.mark.parametrize(
    ("file", "before", "after", "wanted"),
    [
        ("src/sdlora/stages/evaluate/ssim.py", "sigma=1.5", "sigma=1.5 + 0.1", {"evaluate", "report", "report_all"}),
        ("src/sdlora/stages/evaluate/ssim.py", "Structural", "A comment: structural", set()),
        ("workflow/scripts/flip.py", "recipe.folder", "Path(recipe.folder)", {"flip", "encode", *DOWNSTREAM}),
        ("params.yaml", "inference_steps: 3", "inference_steps: 4", DOWNSTREAM - {"train", "export"}),
        ("params.yaml", "train: {rank: 4}", "chosen: 2\n    train: {rank: 4}", REPORTING),
        ("params.yaml", "max_references: 2", "report_seeds: [1, 2], max_references: 2", REPORTING),
        ("params.yaml", "bootstrap_samples: 100", "metrics: [effnet_lite0_distance]", REPORTING - {"choose"}),
        ("params.yaml", "bootstrap_samples: 100", "validation: 0.4", {"sample", *REPORTING}),
        ("src/sdlora/lora/card.py", "A LoRA for", "This is a LoRA for", {"export", "report"}),
        ("params.yaml", "trigger: captain", "trigger: skipper", {"caption", "flip", "encode", *DOWNSTREAM}),
    ],
)
def test_an_edit_reruns_what_depends_on_it(
    built: Project, file: str, before: str, after: str, wanted: set[str]
) -> None:
    built.edit(file, before, after)
    assert built.plan("all") == wanted


def test_one_run_is_enough_where_files_and_measures_change_together(built: Project) -> None:
    """Where an ancient input is made again, Snakemake leaves out a job that has a reason of its own."""
    built.edit("src/sdlora/lora/card.py", "A LoRA for", "This is a LoRA for")
    built.edit("src/sdlora/stages/evaluate/ssim.py", "sigma=1.5", "sigma=1.5 + 0.1")
    assert {"export", "evaluate"} <= built.plan("results/a/metrics.csv")
    built.snakemake("results/a/metrics.csv")
    assert not built.plan("results/a/metrics.csv")


LOSS = ("src/sdlora/stages/train/losses.py", "error.mean(dim=(1, 2, 3))", "error.mean(dim=(3, 2, 1))")
DRAWING = ("src/sdlora/stages/sample/drawing.py", "{layers} layers", "{layers} layers in all")


def test_an_update_is_accepted_and_changed_settings_are_not(built: Project) -> None:
    before = {name: built.read(f"results/a/{name}") for name in ("metrics.csv", "train_log.csv")}
    built.edit(*LOSS)
    built.edit(*DRAWING)  # which choose does, too
    assert built.plan("results/a/metrics.csv") == {"train", "export", "sample", "choose", "evaluate"}
    asked = built.command("sdlora", "accept", "a", check=False)
    assert asked.returncode and "train a (" in asked.stdout and "code was" in asked.stdout, "no answer is no"
    assert re.search(r"choose a \(.*drawing_code was", asked.stdout)
    assert "error: nothing was changed" in asked.stderr
    assert built.plan("results/a/metrics.csv") == {"train", "export", "sample", "choose", "evaluate"}
    assert "the records and the pages of a say so" in built.command("sdlora", "accept", "a", "--yes").stdout
    assert not built.plan("results/a/metrics.csv", "results/a/report/index.html")
    assert built.plan("results/b/metrics.csv") == {"train", "export", "sample", "choose", "evaluate"}, (
        "b was not accepted"
    )
    assert b'"accepted":["' in built.read("results/a/report/index.html")
    assert {name: built.read(f"results/a/{name}") for name in before} == before
    assert "nothing to accept" in built.command("sdlora", "accept", "a", "--yes").stdout
    built.edit("params.yaml", "rank: 2", "rank: 8")
    refused = built.command("sdlora", "accept", "a", "--yes", check=False)
    assert refused.returncode and "train.rank was 2 and is 8; an update can be accepted" in refused.stderr
    built.edit("params.yaml", "rank: 8", "rank: 2")
    assert not built.plan("results/a/metrics.csv")
    built.edit("params.yaml", "    train: {rank: 2}", "    train: {rank: 2, steps: 6}")
    assert "resuming from step 4" in built.snakemake("results/a/train_log.csv"), "what the store kept is accepted, too"


def test_what_does_not_fit_is_not_accepted(built: Project) -> None:
    built.edit(*LOSS)
    lora = next((built.folder / "results/a/checkpoints/step-000002").glob("*.safetensors"))
    content = lora.read_bytes()
    lora.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused = built.command("sdlora", "accept", "a", "--yes", check=False)
    assert refused.returncode and "train a: its files are not as they were made" in refused.stderr
    lora.write_bytes(content)
    made = built.folder / "results/a/made/train.json"
    whole = records.read_json(made)
    records.write_json(made, {name: value for name, value in whole.items() if name != "asked"})
    assert "was written by an older sdlora" in built.command("sdlora", "accept", "a", "--yes", check=False).stderr
    assert "there is no version 'c'" in built.command("sdlora", "accept", "c", check=False).stderr


def test_versions_share_all_but_training(built: Project) -> None:
    sets = list((built.folder / "data/sets/small").glob("pad-*"))
    assert [path.name for path in sets] == ["pad-edge-64"]
    steps = {"a": {0, 2, 4}, "b": {0, 2, 4}}
    assert len(list((built.folder / ".sdlora/store/sample").iterdir())) == sum(map(len, steps.values())) - 1
    pictures = [sorted((built.folder / f"results/{v}/samples/step-000000").iterdir()) for v in steps]
    assert [p.read_bytes() for p in pictures[0]] == [p.read_bytes() for p in pictures[1]]


def test_a_new_picture_is_the_only_one_captioned_and_encoded(built: Project) -> None:
    train = built.folder / "data/embedded/small/train"
    shutil.copy(ROOT / "data/embedded/captain/train/020.png", train / "020.png")
    text = built.snakemake("datasets")
    assert "caption: 1 new, 6 known" in text
    assert "encode: 2 new, 8 already in the cache" in text


def test_a_broken_picture_is_recorded(fresh: Project) -> None:
    folder = fresh.folder / "data/embedded/small/train"
    (folder / "broken.png").write_bytes((folder / "001.png").read_bytes()[:500])
    fresh.snakemake("data/sets/small/manifest.jsonl")
    rejected = records.read_jsonl(fresh.folder / "data/sets/small/rejected.jsonl")
    assert [row["name"] for row in rejected] == ["train/broken.png"]


def test_no_usable_picture_is_told(fresh: Project) -> None:
    for path in (fresh.folder / "data/embedded/small/train").iterdir():
        path.write_bytes(b"no picture")
    text = fresh.snakemake("all", check=False)
    assert "0 usable training pictures, but the dataset's minimum is 1 (4 rejected" in text
    assert "Traceback" not in text


def test_an_empty_folder_is_told_before_any_work(fresh: Project) -> None:
    shutil.rmtree(fresh.folder / "data/embedded/small")
    (fresh.folder / "data/embedded/small").mkdir()
    text = fresh.snakemake("-n", check=False)
    assert "datasets.small.sources[0].path: the folder 'data/embedded/small' holds no picture" in text


def start(project: Project, target: str) -> Job:
    """Snakemake, to be killed; the jobs that it has started go on without it."""
    assert project.python is not None
    words = ("snakemake", "--cores", "1", target)
    return Job.start(project.python, "-m", *words, folder=project.folder, log=project.folder.with_name("said"))


def test_kill_9_loses_at_most_one_checkpoint_and_changes_nothing(built: Project) -> None:
    built.edit("params.yaml", "    train: {rank: 4}", "    train: {rank: 4, steps: 50, checkpoint_every: 5}")
    straight = Project(built.folder.parent / "straight", built.python)
    shutil.copytree(built.folder, straight.folder)
    store = built.folder / ".sdlora/store/train"
    before = set(store.iterdir())
    run = start(built, "results/b/train_log.csv")
    wait_for(lambda: [p for new in set(store.iterdir()) - before for p in new.glob("state/step-000005/state.json")])
    kill_trainings(store)  # as the system does where memory is short
    assert run.wait() == 1 and "Error in rule train" in built.folder.with_name("said").read_text("utf-8")
    run = start(built, "results/b/train_log.csv")
    wait_for(lambda: [p for new in set(store.iterdir()) - before for p in new.glob("state/step-000015/state.json")])
    assert b"resuming from step " in built.read("logs/b/train.log")
    run.kill()
    kill_all_at_work(built.folder)
    saved = max(
        int(p.parent.name[-6:]) for new in set(store.iterdir()) - before for p in new.glob("state/*/state.json")
    )
    built.edit(*LOSS)
    before = set(store.iterdir())
    run = start(built, "results/b/train_log.csv")  # who is told of `accept` by the training has begun it anew
    wait_for(lambda: any((new / "lock").exists() for new in set(store.iterdir()) - before))
    run.kill()
    kill_all_at_work(built.folder)
    accepted = built.command("sdlora", "accept", "b", "--yes").stdout
    assert "train b (a training that was stopped): code was" in accepted
    text = built.snakemake("results/b/train_log.csv")
    assert f"resuming from step {saved} of 50" in text
    straight.edit(*LOSS)
    straight.snakemake("results/b/train_log.csv")
    for name in ("results/b/made/train.json", "results/b/train_log.csv"):
        assert built.read(name) == straight.read(name)


def test_a_finished_training_that_an_update_had_begun_anew_is_kept(built: Project) -> None:
    """Snakemake deletes a job's outputs before it runs, so the store alone has them."""
    was = built.read("results/a/train_log.csv")
    built.edit(*LOSS)
    shutil.rmtree(built.folder / "results/a/checkpoints")
    for name in ("made/train.json", "train_log.csv", "config.yaml"):
        (built.folder / "results/a" / name).unlink()
    accepted = built.command("sdlora", "accept", "a", "--yes").stdout
    assert "train a (a training that the store has): code was" in accepted
    assert "these settings were trained before" in built.snakemake("results/a/train_log.csv")
    assert built.read("results/a/train_log.csv") == was


def test_a_second_run_is_refused_and_an_orphan_is_waited_for(built: Project) -> None:
    built.edit("params.yaml", "    train: {rank: 4}", "    train: {rank: 4, steps: 4000, checkpoint_every: 500}")
    slow_steps(built).touch()  # it only has to be alive
    store = built.folder / ".sdlora/store/train"
    before = set(store.iterdir())
    run = start(built, "results/b/train_log.csv")
    try:
        wait_for(lambda: any((new / "lock").exists() for new in set(store.iterdir()) - before))
        assert "another run of the pipeline is active" in built.snakemake("results/b/train_log.csv", check=False)
        # what the first run settled belongs to other settings: "nothing to be done" would be wrong
        built.edit("params.yaml", "rank: 2", "rank: 9")
        assert "another run of the pipeline is active" in built.snakemake("results/a/metrics.csv", check=False)
        built.edit("params.yaml", "rank: 9", "rank: 2")
        recipe = built.read(".sdlora/recipes/train/b.json")
        built.edit("params.yaml", "steps: 4000", "steps: 5000")
        built.snakemake("-n", check=False)
        assert built.read(".sdlora/recipes/train/b.json") == recipe, "a dry run must not touch a live run's recipe"
        built.edit("params.yaml", "steps: 5000", "steps: 4000")
        run.kill()  # Snakemake alone: its training lives on
        assert run.wait() == 128 + signal.SIGKILL
        orphan = at_work(built.folder)
        log, waits = built.folder / "logs/b/train.log", b"waiting for another process that is at work in"

        def said() -> bytes:
            return log.read_bytes() if log.exists() else b""  # a job begins without one

        second = start(built, "results/b/train_log.csv")
        wait_for(lambda: waits in said())
        assert not second.ended()
        kill(orphan)
        wait_for(lambda: b"/4000" in said().partition(waits)[2])
    finally:
        kill_all_at_work(built.folder)


def test_a_power_cut_in_every_file_is_mended(built: Project) -> None:
    """All that jobs wrote for version a, in the project and in the store; of what a job remembers nothing is gone."""
    pages = ("results/a/metrics.csv", "results/a/report/index.html")
    before, cuts = outputs_of(built), tuple(CUTS.values())
    files = [
        path
        for folder in ("results/a", "data/sets", ".sdlora")
        for path in sorted((built.folder / folder).rglob("*"))
        if path.is_file() and path.name not in (freshness.FOLDER_MARK, "lock", "run.lock")
    ]
    assert len(files) > 100
    for number, path in enumerate(files):
        remembers = path.is_relative_to(built.folder / ".sdlora") and path.suffix == ".json"
        cuts[number % (2 if remembers else 3)](path)
    built.snakemake(*pages)
    assert outputs_of(built) == before
    for name, digest in ((name, digest) for outputs in before.values() for name, digest in outputs.items()):
        assert sha256_of(built.folder / name) == digest, name
    assert "Nothing to be done" in built.snakemake("-n", *pages)


def outputs_of(project: Project) -> dict[str, dict[str, str]]:
    """What the records of version a and of its dataset name."""
    folders = ("results/a", "data/sets/small", "data/sets/small/pad-edge-64")
    paths = [path for folder in folders for path in sorted((project.folder / folder / "made").glob("*.json"))]
    return {str(path.relative_to(project.folder)): records.read_json(path)["outputs"] for path in paths}


def test_damaged_latents_are_encoded_again(built: Project) -> None:
    latents = next((built.folder / "data/sets/small/pad-edge-64/latents/tiny").glob("*.safetensors"))
    content = bytearray(latents.read_bytes())
    content[-9] ^= 1
    latents.write_bytes(content)
    (built.folder / ".sdlora/store/latents" / latents.name).write_bytes(content)  # the same file where disks can link
    assert "encode" in built.plan("all")
    assert "encode: 1 new, 7 already in the cache" in built.snakemake("datasets")
    assert not built.plan("all")


def test_same_inputs_same_bytes(built: Project, fresh: Project) -> None:
    """In forks of the tests' server, and up to export as a user types it: in processes of their own."""
    typed = Project(fresh.folder).snakemake("results/a/made/export.json")
    said = typed + fresh.snakemake("results/a/metrics.csv")
    assert "rule train" in typed and "loss" in typed, "what jobs say is there, too"
    for noise in ("provenance/metadata", "Missing metadata", "gemm_4bit_forward", "pip install kernels"):
        assert noise not in said
    for stage in ("train", "export", "sample", "choose", "evaluate"):
        ours, theirs = (records.read_json(p.folder / f"results/a/made/{stage}.json")["outputs"] for p in (built, fresh))
        assert ours == theirs, stage


FOLDERS = (
    "data/sets/small/pad-edge-64/pictures", "data/sets/small/pad-edge-64/train",
    "data/sets/small/pad-edge-64/latents/tiny", "results/a/checkpoints", "results/a/export", "results/a/samples",
    "results/a/test_samples",
)  # fmt: skip


def test_snakemakes_own_commands_see_every_output(built: Project) -> None:
    lines = {line.split("\t")[0]: line for line in built.snakemake("--summary").splitlines() if "\t" in line}
    assert all("no update" in lines[folder] for folder in FOLDERS)
    drawn = built.snakemake("results/a/metrics.csv", "--dag")
    rules = {rule.split("\\n")[0] for rule in re.findall(r'label = "([^"]+)"', drawn)}
    assert "digraph snakemake_dag" in drawn and rules >= {"scrape", "fit", "train", "sample", "choose", "evaluate"}
    assert "--touch would call results fresh that other settings" in built.snakemake("--touch", check=False)
    said = built.snakemake("--report", "snakemake.html")
    assert "Missing metadata" not in said and "Report created" in said
    report = built.read("snakemake.html").decode("utf-8")
    for caption in ("All versions: pictures at every checkpoint", "Every metric of every checkpoint of a; step 0 is"):
        assert caption in report
    assert "and the chosen step of a: one column a prompt" in " ".join(report.split())
    raw = sorted((built.folder / "data/sets/small/raw").iterdir())
    built.snakemake("--delete-all-output")
    assert not any((built.folder / folder).exists() for folder in FOLDERS)
    assert sorted((built.folder / "data/sets/small/raw").iterdir()) == raw, "what was gathered is nobody's to delete"
    text = built.snakemake("results/a/metrics.csv")
    assert "publishing run" in text and "encode: 0 new, 8 already in the cache" in text, "the store has it all"
