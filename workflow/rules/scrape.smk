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
        "{params.python:q} workflow/scripts/scrape.py --recipe {input.recipe} --out {params.out}"
        " --again {params.again} --made {output.made} 2>&1 | tee {log}"
