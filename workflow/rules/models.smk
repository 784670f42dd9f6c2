# The embedded base. `snakemake --cores 2 models` trains it anew; nothing else asks for that.
rule models:
    log:
        "logs/base/models.log",
    threads: 2
    resources:
        mem_mb=6000,
        runtime=2880,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} -u -m tools.tiny_base.make --threads {threads} 2>&1 | tee {log}"


rule base_quality:
    input:
        "params.yaml",
        "models/tiny-sd/model_index.json",
        "models/tiny-sd/unet/diffusion_pytorch_model.safetensors",
        "models/tiny-sd/vae/diffusion_pytorch_model.safetensors",
        "models/tiny-blip/model.safetensors",
    output:
        figures="results/base/quality.json",
        sheet="results/base/sheet.png",
    log:
        "logs/base/quality.log",
    threads: 2
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        python=sys.executable,
    shell:
        "{params.python:q} -m tools.tiny_base.quality --threads {threads} --out {output.figures} 2>&1 | tee {log}"
