rule evaluate:
    input:
        recipe=recipe_of(EvaluateRecipe),
        records=records_before(EvaluateRecipe),
        files=ancient(files_for_tools(measured=True)),
        new_files=files_for_tools(measured=False),
    output:
        *outputs(EvaluateRecipe),
    log:
        "logs/{version}/evaluate.log",
    threads: PARAMS.threads
    resources:
        gpu=cards_of_measuring,
        mem_mb=memory_of_measuring,
        runtime=60,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/evaluate.py --recipe {input.recipe} 2>&1 | tee {log}"
