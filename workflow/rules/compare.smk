# snakemake --cores 1 results/compare/v4-vs-v4-padded.csv
rule compare:
    input:
        one="results/{one}/metrics.csv",
        other="results/{other}/metrics.csv",
        script="workflow/scripts/compare.py",
    output:
        "results/compare/{one}-vs-{other}.csv",
    log:
        "logs/compare/{one}-vs-{other}.log",
    wildcard_constraints:
        one="|".join(map(re.escape, PARAMS.versions)),
        other="|".join(map(re.escape, PARAMS.versions)),
    params:
        samples=lambda wildcards: PARAMS.versions[wildcards.one].evaluate.bootstrap_samples,
        python=sys.executable,
    shell:
        "{params.python:q} {input.script} results/{wildcards.one} results/{wildcards.other}"
        " --bootstrap-samples {params.samples} --out {output} 2>&1 | tee {log}"
