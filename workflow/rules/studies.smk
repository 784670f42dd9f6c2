# snakemake --cores 2 studies: what the write-ups claim, put to the test (studies.yaml); nothing else asks for it.
rule studies:
    input:
        recipe=studied,
        records=records_before(StudiesRecipe),
    output:
        *outputs(StudiesRecipe),
    log:
        "logs/studies.log",
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/studies.py --recipe {input.recipe} 2>&1 | tee {log}"
