rule flip:
    input:
        recipe=recipe_of(FlipRecipe),
        records=records_before(FlipRecipe),
    output:
        *outputs(FlipRecipe),
    log:
        "logs/{dataset}/{fit}/flip.log",
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/flip.py --recipe {input.recipe} 2>&1 | tee {log}"
