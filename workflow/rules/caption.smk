rule caption:
    input:
        recipe=recipe_of(CaptionRecipe),
        records=records_before(CaptionRecipe),
    output:
        *outputs(CaptionRecipe),
    log:
        "logs/{dataset}/{fit}/caption.log",
    threads: PARAMS.threads
    resources:
        gpu=1,
        mem_mb=memory_of_captioning,
        runtime=240,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/caption.py --recipe {input.recipe} 2>&1 | tee {log}"
