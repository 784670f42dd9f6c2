rule train:
    input:
        recipe=recipe("results/{version}/made/train.json"),
        records=before("results/{version}/made/train.json"),
    output:
        "results/{version}/train_log.csv",
        "results/{version}/config.yaml",
        made="results/{version}/made/train.json",
    log:
        "logs/{version}/train.log",
    resources:
        gpu=1,
    params:
        folder=fitted,
        base=lambda wildcards: PARAMS.versions[wildcards.version].base,
        out=subpath(output.made, ancestor=2),
        keep_runs=PARAMS.keep_runs,
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/train.py --recipe {input.recipe} --inputs {input.records}"
        " --folder {params.folder} --base {params.base} --out {params.out} --keep-runs {params.keep_runs}"
        " --made {output.made} 2>&1 | tee {log}"
