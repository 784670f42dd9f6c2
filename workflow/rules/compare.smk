# snakemake --cores 1 results/compare/v4-vs-v4-padded.html, or results/compare/v8-vs-base.csv
rule compare:
    input:
        recipe=recipe_of_comparison,
        records=compared,
    output:
        table="results/compare/{one}-vs-{other}.csv",
        page="results/compare/{one}-vs-{other}.html",
    log:
        "logs/compare/{one}-vs-{other}.log",
    wildcard_constraints:
        one=SIDE,
        other=SIDE,
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/compare.py {wildcards.one} {wildcards.other} 2>&1 | tee {log}"
