rule encode:
    input:
        recipe=recipe_of(EncodeRecipe),
        records=records_before(EncodeRecipe),
    output:
        *outputs(EncodeRecipe),
    log:
        "logs/{dataset}/{fit}/encode-{base}.log",
    threads: PARAMS.threads
    resources:
        gpu=1,
        mem_mb=memory_of_encoding,
        runtime=120,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/encode.py --recipe {input.recipe} 2>&1 | tee {log}"
