rule fit:
    input:
        recipe=recipe_of(FitRecipe),
        records=records_before(FitRecipe),
    output:
        *outputs(FitRecipe),
    log:
        "logs/{dataset}/{fit}/fit.log",
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/fit.py --recipe {input.recipe} 2>&1 | tee {log}"
