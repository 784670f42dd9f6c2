rule scrape:
    input:
        recipe=recipe("data/sets/{dataset}/made/scrape.json"),
    output:
        "data/sets/{dataset}/manifest.jsonl",
        made="data/sets/{dataset}/made/scrape.json",
    log:
        "logs/{dataset}/scrape.log",
    params:
        out=subpath(output.made, ancestor=2),
        python=sys.executable,
    shell:
        "{params.python} workflow/scripts/scrape.py --recipe {input.recipe} --out {params.out}"
        " --made {output.made} 2>&1 | tee {log}"
