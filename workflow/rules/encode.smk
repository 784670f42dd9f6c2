rule encode:
    input:
        recipe=recipe("data/sets/{dataset}/{fit}/made/encode-{base}.json"),
        records=before("data/sets/{dataset}/{fit}/made/encode-{base}.json"),
    output:
        "data/sets/{dataset}/{fit}/latents/index-{base}.jsonl",
        made="data/sets/{dataset}/{fit}/made/encode-{base}.json",
    log:
        "logs/{dataset}/{fit}/encode-{base}.log",
    resources:
        gpu=1,
    params:
        folder=subpath(output.made, ancestor=2),
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/encode.py --recipe {input.recipe} --inputs {input.records}"
        " --folder {params.folder} --base {wildcards.base} --made {output.made} 2>&1 | tee {log}"
