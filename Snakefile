# The DAG: images -> results/<version>/metrics.csv. Rules lie in workflow/rules, one file per stage.
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")
sys.path.insert(0, str(Path(workflow.basedir) / "src"))

from sdlora import guard, inputs, plan, provenance, settings
from sdlora.errors import SdloraError

try:
    PARAMS = settings.load(Path("params.yaml"))
    inputs.check(PARAMS)
    JOBS = plan.jobs(PARAMS)
except SdloraError as error:
    raise WorkflowError(str(error))

# While another run is at work its recipes stay as they are: a dry run then shows the plan as it was.
if workflow.is_main_process and guard.acquire():
    provenance.settle(JOBS)


wildcard_constraints:
    version="|".join(PARAMS.versions),
    dataset="|".join(PARAMS.datasets),
    base="|".join(PARAMS.bases),
    fit=r"[a-z_]+(-[a-z0-9]+)*-\d+",


onstart:
    guard.leave_unless_held()


include: "workflow/rules/common.smk"
include: "workflow/rules/scrape.smk"
include: "workflow/rules/fit.smk"
include: "workflow/rules/caption.smk"
include: "workflow/rules/flip.smk"
include: "workflow/rules/encode.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/models.smk"


localrules:
    all,
    datasets,
    scrape,  # where there is a network, and where --forcerun is known


rule all:
    default_target: True
    input:
        "results/report/index.html",
        expand("results/{version}/report/index.html", version=PARAMS.run),


rule datasets:
    input:
        plan.dataset_records(PARAMS),
