rule flip:
    input:
        recipe=recipe("data/sets/{dataset}/{fit}/made/flip.json"),
        records=before("data/sets/{dataset}/{fit}/made/flip.json"),
    output:
        "data/sets/{dataset}/{fit}/train/metadata.jsonl",
        made="data/sets/{dataset}/{fit}/made/flip.json",
    log:
        "logs/{dataset}/{fit}/flip.log",
    params:
        folder=subpath(output.made, ancestor=2),
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/flip.py --recipe {input.recipe} --inputs {input.records}"
        " --folder {params.folder} --made {output.made} 2>&1 | tee {log}"
