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


rule scrape:
    input:
        recipe=scrapable,
    output:
        "data/sets/{dataset}/manifest.jsonl",
        made="data/sets/{dataset}/made/scrape.json",
    log:
        "logs/{dataset}/scrape.log",
    params:
        out=subpath(output.made, ancestor=2),
        again=lambda wildcards: int(scrape_again(wildcards)),
        python=sys.executable,
    shell:
        "{params.python} workflow/scripts/scrape.py --recipe {input.recipe} --out {params.out}"
        " --again {params.again} --made {output.made} 2>&1 | tee {log}"
