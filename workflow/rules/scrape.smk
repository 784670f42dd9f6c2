rule scrape:
    input:
        recipe=scrapable,
    output:
        *outputs(ScrapeRecipe),
    log:
        "logs/{dataset}/scrape.log",
    resources:
        mem_mb=1000,
        runtime=240,
    params:
        again=lambda wildcards: int(scrape_again(wildcards)),
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/scrape.py --recipe {input.recipe} --again {params.again} 2>&1 | tee {log}"
