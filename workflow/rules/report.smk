rule report:
    input:
        recipe=recipe_of(ReportRecipe),
        records=records_before(ReportRecipe),
    output:
        *outputs(ReportRecipe),
    log:
        "logs/{version}/report.log",
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/report.py --recipe {input.recipe} 2>&1 | tee {log}"


rule report_all:
    input:
        recipe=recipe_of(ReportAllRecipe),
        records=records_before(ReportAllRecipe),
        pages=pages_to_make,
    output:
        *outputs(ReportAllRecipe),
    log:
        "logs/report.log",
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/report_all.py --recipe {input.recipe} 2>&1 | tee {log}"
