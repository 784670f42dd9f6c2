# What was left by a version that is no longer in params.yaml, or never was: Snakemake would call an old file up to date.
# And what is asked of a comparison with such a version, of which Snakemake would say that no rule makes it.
KNOWN = "|".join(map(re.escape, [*PARAMS.versions, *RESULTS_OF_ALL]))


rule unknown_version:
    input:
        no_such_version,
    output:
        "results/{unknown}/{file}",
    log:
        "logs/unknown/{unknown}/{file}.log",
    wildcard_constraints:
        unknown=rf"compare(?=/)(?!/(?:{SIDE})-vs-(?:{SIDE})\.(?:csv|html)$)|(?!(?:{KNOWN})/)[^/]+",
    shell:
        "exit 1"
