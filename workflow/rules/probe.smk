# A search's trial at a checkpoint: `sdlora search` asks for these.
rule probe:
    input:
        recipe=recipe_of(ProbeRecipe),
        records=records_before(ProbeRecipe),
    output:
        *outputs(ProbeRecipe),
    log:
        "logs/{version}/probe-{step}.log",
    wildcard_constraints:
        version=TRAINED,
        step=r"\d+",
    threads: threads_of_training
    resources:
        gpu=cards_of_training,
        mem_mb=lambda wildcards: max(memory_of_drawing(wildcards), memory_of_training(wildcards)),
        runtime=1440,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/probe.py --recipe {input.recipe} 2>&1 | tee {log}"
