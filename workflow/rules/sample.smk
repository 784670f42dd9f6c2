rule sample:
    input:
        recipe=with_references,
        records=before("results/{version}/made/sample.json"),
    output:
        "results/{version}/samples/index.jsonl",
        made="results/{version}/made/sample.json",
    log:
        "logs/{version}/sample.log",
    resources:
        gpu=1,
    params:
        checkpoints="results/{version}/checkpoints",
        references=references,
        out=subpath(output[0], parent=True),
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/sample.py --recipe {input.recipe} --inputs {input.records}"
        " --checkpoints {params.checkpoints} --captions {params.references}/captions.jsonl --out {params.out}"
        " --made {output.made} 2>&1 | tee {log}"
