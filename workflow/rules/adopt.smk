# In the place of train and export, for the versions that name a LoRA.
rule adopt:
    input:
        recipe=recipe_of(AdoptRecipe),
        records=records_before(AdoptRecipe),
    output:
        *outputs(AdoptRecipe),
    log:
        "logs/{version}/adopt.log",
    wildcard_constraints:
        version=ADOPTED,
    resources:
        mem_mb=8000,
        runtime=30,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/adopt.py --recipe {input.recipe} 2>&1 | tee {log}"
