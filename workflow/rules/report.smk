rule report:
    input:
        recipe=recipe("results/{version}/made/report.json"),
        records=before("results/{version}/made/report.json"),
    output:
        page="results/{version}/report/index.html",
        made="results/{version}/made/report.json",
    log:
        "logs/{version}/report.log",
    params:
        references=references,
        result="results/{version}",
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/report.py --recipe {input.recipe} --inputs {input.records}"
        " --references {params.references} --result {params.result} --made {output.made} 2>&1 | tee {log}"


rule report_all:
    input:
        recipe=recipe("results/report/made/report.json"),
        records=before("results/report/made/report.json"),
    output:
        page="results/report/index.html",
        table="results/report/versions.csv",
        made="results/report/made/report.json",
    log:
        "logs/report.log",
    params:
        python=sys.executable,
    shell:
        "{params.python:q} workflow/scripts/report.py --recipe {input.recipe} --inputs {input.records}"
        " --references none --result results --made {output.made} 2>&1 | tee {log}"
