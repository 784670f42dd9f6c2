rule sample:
    input:
        recipe=with_references,
        records=records_before(SampleRecipe),
    output:
        *outputs(SampleRecipe),
    log:
        "logs/{version}/sample.log",
    threads: PARAMS.threads
    resources:
        gpu=1,
        mem_mb=memory_of_drawing,
        runtime=480,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/sample.py --recipe {input.recipe} 2>&1 | tee {log}"
