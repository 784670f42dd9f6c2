# Benchmarks stay out: Snakemake counts their files among the outputs, and nothing keeps their mtimes truthful.
# What the rules share: a job's recipe is its first input, the records of the jobs before it follow.
JOB_OF = {job.made: job for job in JOBS}


def recipe(pattern):
    """Input function: the recipe of the job that writes the record `pattern`."""
    return lambda wildcards: str(JOB_OF[Path(pattern.format(**wildcards))].recipe_path)


def before(pattern):
    """Input function: the records that the job of the record `pattern` needs."""
    return lambda wildcards: [str(p) for p in JOB_OF[Path(pattern.format(**wildcards))].inputs]


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
    return recipe("results/{version}/made/sample.json")(wildcards)


def no_such_version(wildcards):
    """Input function of whatever is asked of a version that params.yaml does not have."""
    sys.exit(
        f"error: params.yaml has no version {wildcards.unknown!r}{errors.suggest(wildcards.unknown, PARAMS.versions)}"
    )


def fitted(wildcards):
    """Folder a version learns from."""
    version = PARAMS.versions[wildcards.version]
    return str(plan.set_folder(version.dataset, plan.fit_name(PARAMS, wildcards.version)))


def references(wildcards):
    """Folder of a version's references: always padded, so that nothing of them is lost."""
    version = PARAMS.versions[wildcards.version]
    return str(plan.set_folder(version.dataset, plan.fit_name(PARAMS, wildcards.version, "pad")))


def scrapable(wildcards):
    """Input function: the recipe, once it is clear that the pictures are there or may be scraped.

    It ends the run itself: where the manifest exists, Snakemake would take an exception for "no rule makes this" and
    go on with the old file.
    """
    job = JOB_OF[Path(f"data/sets/{wildcards.dataset}/made/scrape.json")]
    try:
        plan.may_scrape(PARAMS, job, forced=scrape_again(wildcards))
    except SdloraError as error:
        sys.exit(f"error: {error}")
    return str(job.recipe_path)


def scrape_again(wildcards):
    """Whether the user says so: --forcerun with this rule or one of its files. --forceall does not count."""
    folder = f"data/sets/{wildcards.dataset}"
    names = {"scrape", f"{folder}/manifest.jsonl", f"{folder}/made/scrape.json"}
    return bool(names & set(map(str, workflow.dag_settings.forcerun)))
