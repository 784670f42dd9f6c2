rule evaluate:
    input:
        recipe=recipe("results/{version}/made/evaluate.json"),
        records=before("results/{version}/made/evaluate.json"),
    output:
        "results/{version}/metrics.csv",
        "results/{version}/metrics.json",
        "results/{version}/best.json",
        made="results/{version}/made/evaluate.json",
    log:
        "logs/{version}/evaluate.log",
    params:
        samples="results/{version}/samples",
        references=references,
        out=subpath(output.made, ancestor=2),
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/evaluate.py --recipe {input.recipe} --inputs {input.records}"
        " --samples {params.samples} --references {params.references} --out {params.out}"
        " --made {output.made} 2>&1 | tee {log}"
