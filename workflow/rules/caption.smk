rule caption:
    input:
        recipe=recipe("data/sets/{dataset}/{fit}/made/caption.json"),
        records=before("data/sets/{dataset}/{fit}/made/caption.json"),
    output:
        "data/sets/{dataset}/{fit}/captions.jsonl",
        made="data/sets/{dataset}/{fit}/made/caption.json",
    log:
        "logs/{dataset}/{fit}/caption.log",
    resources:
        gpu=1,
    params:
        folder=subpath(output.made, ancestor=2),
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/caption.py --recipe {input.recipe} --inputs {input.records}"
        " --folder {params.folder} --made {output.made} 2>&1 | tee {log}"
