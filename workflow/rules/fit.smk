rule fit:
    input:
        recipe=recipe("data/sets/{dataset}/{fit}/made/fit.json"),
        records=before("data/sets/{dataset}/{fit}/made/fit.json"),
    output:
        "data/sets/{dataset}/{fit}/fit.jsonl",
        made="data/sets/{dataset}/{fit}/made/fit.json",
    log:
        "logs/{dataset}/{fit}/fit.log",
    params:
        source="data/sets/{dataset}",
        out=subpath(output.made, ancestor=2),
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/fit.py --recipe {input.recipe} --inputs {input.records}"
        " --source {params.source} --out {params.out} --made {output.made} 2>&1 | tee {log}"
