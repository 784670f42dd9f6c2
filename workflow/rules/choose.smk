rule choose:
    input:
        recipe=recipe_of(ChooseRecipe),
        records=records_before(ChooseRecipe),
    output:
        *outputs(ChooseRecipe),
    log:
        "logs/{version}/choose.log",
    threads: PARAMS.threads
    resources:
        gpu=1,
        mem_mb=memory_of_drawing,
        runtime=480,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/choose.py --recipe {input.recipe} 2>&1 | tee {log}"
