# Nothing asks for it: `snakemake results/v8/animation.gif`.
rule animate:
    input:
        recipe=animated,
        records=records_before(AnimateRecipe),
    output:
        *outputs(AnimateRecipe),
    log:
        "logs/{version}/animate.log",
    threads: PARAMS.threads
    resources:
        gpu=1,
        mem_mb=24000,
        runtime=120,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/animate.py --recipe {input.recipe} 2>&1 | tee {log}"
