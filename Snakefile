# The DAG: images -> results/<version>/metrics.csv. Rules lie in workflow/rules, one file per stage.
import re
import sys
from pathlib import Path

from snakemake.logging import logger
from snakemake.utils import min_version

min_version("9.0")
SOURCE = str(Path(workflow.basedir) / "src")
sys.path.insert(0, SOURCE)

from sdlora import errors
from sdlora.config.load import load
from sdlora.config.params import RESULTS_OF_ALL
from sdlora.errors import SdloraError
from sdlora.flow import asking, command, comparing, foreseen, freshness, inputs, lock, looking, plan, runs
from sdlora.stages.adopt.recipe import AdoptRecipe
from sdlora.stages.animate.recipe import AnimateRecipe
from sdlora.stages.caption.recipe import CaptionRecipe
from sdlora.stages.choose.recipe import ChooseRecipe
from sdlora.stages.encode.recipe import EncodeRecipe
from sdlora.stages.evaluate.recipe import EvaluateRecipe
from sdlora.stages.export.recipe import ExportRecipe
from sdlora.stages.fit.recipe import FitRecipe
from sdlora.stages.flip.recipe import FlipRecipe
from sdlora.stages.probe.recipe import ProbeRecipe
from sdlora.stages.report.recipe import ReportAllRecipe, ReportRecipe
from sdlora.stages.sample.recipe import SampleRecipe
from sdlora.stages.scrape.recipe import ScrapeRecipe
from sdlora.stages.studies.recipe import StudiesRecipe
from sdlora.stages.train.recipe import TrainRecipe

command.run_code_of(SOURCE)
looking.less()

if config:
    raise WorkflowError(
        f"--config and --configfile are not read ({', '.join(map(str, config))}): edit params.yaml, or say "
        f"`dvc exp run --set-param base=sd15`"
    )
# Our own records tell what is fresh; that Snakemake has none is no news to anybody.
logger.addFilter(lambda record: not any(words in record.getMessage() for words in command.NO_NEWS))

# While another run is at work its recipes stay as they are: a dry run then shows the plan as it was.
try:
    command.check_options(sys.argv[1:])
    inputs.check_place(Path(workflow.basedir))
    PARAMS = load(Path("params.yaml"), studies=command.asks_for_studies(sys.argv[1:]))
    inputs.check(PARAMS)
    JOBS = plan.jobs(PARAMS)
    FRESH = FORESIGHT = None  # where a job is one that runs now, or another run is at work: unknown
    if workflow.is_main_process and lock.acquire(sys.argv[1:]):
        logger.addHandler(runs.Events(lambda: workflow.dryrun))
        for note in (*inputs.moving(PARAMS), *inputs.doubtful(PARAMS)):
            print(note, file=sys.stderr)
        FRESH = {job.made for job in freshness.settle(JOBS)}
        to_do = [job for job in JOBS if job.made not in FRESH]
        FORESIGHT = foreseen.Foresight(to_do, here=command.runs_here(sys.argv[1:]))
except SdloraError as error:
    raise WorkflowError(str(error))


wildcard_constraints:
    version="|".join(map(re.escape, PARAMS.versions)),
    dataset="|".join(map(re.escape, PARAMS.datasets)),
    base="|".join(map(re.escape, PARAMS.bases)),
    fit=r"[a-z_]+(-[a-z0-9]+)*-\d+",


include: "workflow/rules/common.smk"
include: "workflow/rules/scrape.smk"
include: "workflow/rules/fit.smk"
include: "workflow/rules/caption.smk"
include: "workflow/rules/flip.smk"
include: "workflow/rules/encode.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/adopt.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/choose.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/animate.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/studies.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/unknown.smk"


localrules:
    all,
    datasets,
    scrape,  # where there is a network, and where --forcerun is known
    report_all,  # these take less time than a job's start, and no group has them
    compare,
    studies,


rule all:
    default_target: True
    input:
        "results/report/index.html",
        plan.pages(PARAMS),


rule datasets:
    input:
        plan.dataset_records(PARAMS),
