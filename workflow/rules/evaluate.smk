"""Every model on every benchmark, the untrained base included.

Inputs: a model folder, a benchmark. Outputs: results/<experiment>/scores/<arm>-seed<k>/<task>.parquet (every sample)
and <task>.json (metrics).
"""


rule scores:
    input:
        collect("<experiment>/scores/{model}/{task}.json", model=measured(), task=config["run"]["tasks"]),


rule evaluate:
    """Samples an arm's answers to one benchmark through lm-eval, and grades them."""
    input:
        model=arm_manifest,
        benchmark="<experiment>/data/benchmarks/{task}.jsonl",
    output:
        samples="<experiment>/scores/{arm}-seed{seed}/{task}.parquet",
        scores="<experiment>/scores/{arm}-seed{seed}/{task}.json",
    log:
        "<logs>/evaluate/{arm}-seed{seed}/{task}.log",
    benchmark:
        "<benchmarks>/evaluate/{arm}-seed{seed}/{task}.jsonl"
    conda:
        "../../envs/rsd.yaml"
    threads: model_threads
    resources:
        **needs("evaluate"),
    params:
        settings=lambda wildcards, output: as_json(
            settings_of.evaluation_settings(config, wildcards.arm, wildcards.task)
        ),
        decides=lambda wildcards: deciding(settings_of.evaluation_settings(config, wildcards.arm, wildcards.task)),
        code=lambda wildcards: stage_code("evaluate", wildcards.task),
        model=subpath(input.model, parent=True),
        work=work("evaluate", "{arm}-seed{seed}"),
    shell:
        "rsd evaluate --model {params.model:q} --benchmark {input.benchmark:q} --settings {params.settings:q}"
        " --threads {threads} --samples {output.samples:q} --scores {output.scores:q}"
        " --work {params.work:q} --log {log:q}"
