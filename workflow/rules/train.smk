rule train:
    input:
        recipe=recipe_of(TrainRecipe),
        records=records_before(TrainRecipe),
    output:
        *outputs(TrainRecipe),
    log:
        "logs/{version}/train.log",
    wildcard_constraints:
        version=TRAINED,
    threads: threads_of_training
    resources:
        gpu=cards_of_training,
        mem_mb=memory_of_training,
        runtime=1440,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/train.py --recipe {input.recipe} 2>&1 | tee {log}"
