rule export:
    input:
        recipe=recipe_of(ExportRecipe),
        records=records_before(ExportRecipe),
    output:
        *outputs(ExportRecipe),
    log:
        "logs/{version}/export.log",
    wildcard_constraints:
        version=TRAINED,
    resources:
        mem_mb=8000,
        runtime=30,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/export.py --recipe {input.recipe} 2>&1 | tee {log}"
