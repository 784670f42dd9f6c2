# Benchmarks stay out: Snakemake counts their files among the outputs, and nothing keeps their mtimes truthful.
# What the rules share: a job's recipe is its first input, the records of the jobs before it follow, and its outputs are
# what its recipe's class writes.
JOB_OF = {job.made: job for job in JOBS}

# Versions that are trained, and those that name a LoRA from elsewhere; `(?!)` is no version at all.
TRAINED = (
    "|".join(re.escape(name) for name, version in PARAMS.versions.items() if version.lora is None) or "(?!)"
)
ADOPTED = (
    "|".join(re.escape(name) for name, version in PARAMS.versions.items() if version.lora is not None)
    or "(?!)"
)
# What may stand on either side of a comparison.
SIDE = "|".join(map(re.escape, [*PARAMS.versions, "base"]))


def job_of(kind, wildcards):
    """The job of a stage that some wildcards mean."""
    made = Path(kind.made_pattern().format(**wildcards))
    if made not in JOB_OF:
        known = [str(job.made) for job in JOBS if isinstance(job, kind)]
        sys.exit(f"error: no version of params.yaml makes {made}{errors.suggest(str(made), known)}")
    return JOB_OF[made]


def possible(job):
    """A job's recipe, once it is clear that its settings, its base and this machine allow it.

    Pictures would otherwise be fitted, captioned and encoded for a training that refuses to begin.
    """
    if FORESIGHT is not None and job.made not in FRESH:
        place = ""
        try:
            inputs.check_of(PARAMS, job.wildcards)  # which names the place itself
            place = next((f"{key} {name}: " for key, name in job.wildcards.items()), f"{job.stage}: ")
            FORESIGHT.check(job)
        except SdloraError as error:
            sys.exit(f"error: {place}{error}")
    return str(job.path)


def recipe_of(kind):
    """Input function: the recipe of a stage's job."""
    return lambda wildcards: possible(job_of(kind, wildcards))


def records_before(kind):
    """Input function: the records that a stage's job needs."""
    return lambda wildcards: [str(path) for path in job_of(kind, wildcards).inputs]


def files_for_tools(measured):
    """Input function: the record of the version's files for other tools, or nothing.

    Who asks for metrics.csv wants the files, too, which measuring does not read: they are an ancient input. But where an
    ancient input is made again, Snakemake (9.27) leaves out a job that has a reason of its own. So there are two inputs:
    an ancient one where what is measured is fresh, and a plain one where it is not.
    """

    def found(wildcards):
        adopted = PARAMS.versions[wildcards.version].lora is not None
        is_fresh = FRESH is None or job_of(EvaluateRecipe, wildcards).made in FRESH
        record = job_of(AdoptRecipe if adopted else ExportRecipe, wildcards).made
        return [str(record)] if is_fresh == measured else []

    return found


def pages_to_make(wildcards):
    """Input function: the pages that the page over all links to and that are not there yet.

    Those that are there are no input: it need not be written anew because one of them is.
    """
    return [page for page in plan.pages(PARAMS) if not Path(page).exists()]


def comparison(wildcards):
    """The recipe of a comparison."""
    try:
        return comparing.recipe_of(PARAMS, wildcards.one, wildcards.other)
    except SdloraError as error:
        sys.exit(f"error: {error}")


def recipe_of_comparison(wildcards):
    """Input function: a comparison's recipe as it is today; while another run is at work it stays as it was."""
    recipe = comparison(wildcards)
    if FRESH is not None or not recipe.path.exists():
        comparing.write(recipe)
    return str(recipe.path)


def compared(wildcards):
    """Input function: the records of the versions that are compared; the base is step 0 of the other one."""
    return [str(path) for path in comparison(wildcards).inputs]


def cards_of_measuring(wildcards):
    """A card, where a metric of the version asks the base or the captioner."""
    return job_of(EvaluateRecipe, wildcards).cards


def outputs(kind):
    """What a stage writes, its record last; what Snakemake's report shows has its text."""
    texts = {f"{kind.folder_pattern}/{path}": text for path, text in kind.shown.items()}
    return [flagged(path, texts.get(path)) for path in kind.patterns()]


def flagged(path, text):
    """One output: a folder if it ends in a slash, with a text of workflow/report/ if it has one."""
    if path.endswith("/"):
        return directory(path.rstrip("/"))
    return path if text is None else report(path, caption=f"../report/{text}", category="Results")


def with_references(wildcards):
    """Input function: the recipe of sampling, once it is clear that the version has references to be drawn.

    A training of hours would otherwise end with nothing to measure against.
    """
    dataset = PARAMS.versions[wildcards.version].dataset
    if PARAMS.datasets[dataset].held_out == 0:
        sys.exit(
            f"error: datasets.{dataset}.held_out is 0, so version {wildcards.version} has no references to be measured "
            f"against; set it to a number of pictures or to a subfolder's name, or ask for train_log.csv alone"
        )
    return possible(job_of(SampleRecipe, wildcards))


def animated(wildcards):
    """Input function: the recipe of a film, where the version says how it is made."""
    if PARAMS.versions[wildcards.version].animate is None:
        sys.exit(
            f"error: version {wildcards.version} has no section animate, which says how its picture is made to move: "
            f"write `animate: {{}}` into it for Stable Video Diffusion's own numbers"
        )
    return possible(job_of(AnimateRecipe, wildcards))


def studied(wildcards):
    """Input function: the recipe of the studies, where there are any."""
    if Path(StudiesRecipe.made_pattern()) not in JOB_OF:
        sys.exit(
            "error: there is no studies.yaml beside params.yaml, which says what is studied: docs/evaluation.md"
        )
    return recipe_of(StudiesRecipe)(wildcards)


def cards_of_training(wildcards):
    """Resource function: a card for each process."""
    return job_of(TrainRecipe, wildcards).cards


def threads_of_training(wildcards):
    """As many threads for each process as params.yaml says."""
    return PARAMS.threads * job_of(TrainRecipe, wildcards).train.processes


def memory_of_training(wildcards):
    """Resource function, MiB: what the preflight predicts, where a cluster must know; here the training looks itself."""
    if workflow.is_main_process and workflow.non_local_exec:
        return asking.training_mib(job_of(TrainRecipe, wildcards))
    return asking.UNKNOWN_MIB


def memory_of_captioning(wildcards):
    """Resource function, MiB: as many pictures as are captioned at once."""
    return asking.captioning_mib(job_of(CaptionRecipe, wildcards))


def memory_of_encoding(wildcards):
    """Resource function, MiB: what the preflight predicts, where a cluster must know."""
    if workflow.is_main_process and workflow.non_local_exec:
        return asking.encoding_mib(job_of(EncodeRecipe, wildcards), plan.version_of(PARAMS, **wildcards))
    return asking.UNKNOWN_ENCODING_MIB


def memory_of_drawing(wildcards):
    """Resource function, MiB: what the preflight predicts of the version's pictures, where a cluster must know."""
    if workflow.is_main_process and workflow.non_local_exec:
        return asking.drawing_mib(job_of(SampleRecipe, wildcards))
    return asking.LEAST_DRAWING_MIB


def memory_of_measuring(wildcards):
    """Resource function, MiB: as much as drawing takes, where a metric asks the base or the captioner."""
    return memory_of_drawing(wildcards) if cards_of_measuring(wildcards) else 2000


def no_such_version(wildcards):
    """Input function of whatever is asked of a version that params.yaml does not have."""
    name, known = wildcards.unknown, [*PARAMS.versions]
    if name == "compare":
        known.append("base")
        try:
            name = command.unknown_side(wildcards.file, known)
        except SdloraError as error:
            sys.exit(f"error: {error}")
    sys.exit(f"error: params.yaml has no version {name!r}{errors.suggest(name, known)}")


def scrapable(wildcards):
    """Input function: the recipe, once it is clear that the pictures are there or may be scraped.

    It ends the run itself: where the manifest exists, Snakemake would take an exception for "no rule makes this" and
    go on with the old file.
    """
    job = job_of(ScrapeRecipe, wildcards)
    try:
        if FRESH is not None and job.made not in FRESH:
            inputs.check_of(PARAMS, job.wildcards)
        plan.may_scrape(PARAMS, job, forced=scrape_again(wildcards))
    except SdloraError as error:
        sys.exit(f"error: {error}")
    return str(job.path)


def scrape_again(wildcards):
    """Whether the user says so: --forcerun with this rule or one of its files. --forceall does not count."""
    folder = f"data/sets/{wildcards.dataset}"
    names = {"scrape", f"{folder}/manifest.jsonl", f"{folder}/made/scrape.json"}
    return bool(names & set(map(str, workflow.dag_settings.forcerun)))
