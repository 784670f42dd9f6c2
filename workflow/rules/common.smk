# Benchmarks stay out: Snakemake counts their files among the outputs, and nothing keeps their mtimes truthful.
# What the rules share: a job's recipe is its first input, the records of the jobs before it follow.
JOB_OF = {job.made: job for job in JOBS}


def recipe(pattern):
    """Input function: the recipe of the job that writes the record `pattern`."""
    return lambda wildcards: str(JOB_OF[Path(pattern.format(**wildcards))].recipe_path)


def before(pattern):
    """Input function: the records that the job of the record `pattern` needs."""
    return lambda wildcards: [str(p) for p in JOB_OF[Path(pattern.format(**wildcards))].inputs]


def fitted(wildcards):
    """Folder a version learns from."""
    version = PARAMS.versions[wildcards.version]
    return str(plan.set_folder(version.dataset, plan.fit_name(PARAMS, wildcards.version)))


def references(wildcards):
    """Folder of a version's references: always padded, so that nothing of them is lost."""
    version = PARAMS.versions[wildcards.version]
    return str(plan.set_folder(version.dataset, plan.fit_name(PARAMS, wildcards.version, "pad")))
