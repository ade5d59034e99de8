"""Every model on every benchmark, the untrained base included.

Inputs: a model folder, a benchmark. Outputs: results/<experiment>/scores/<arm>-seed<k>/<task>.parquet (every sample)
and <task>.json (metrics); before that <task>/shard-NNN.parquet and, with a judge, <task>/judge.parquet.
"""


rule scores:
    input:
        collect("<experiment>/scores/{model}/{task}.json", model=measured(), task=config["run"]["tasks"]),


rule evaluate:
    """Samples an arm's answers to one share of a benchmark through lm-eval, and grades them."""
    input:
        model=arm_manifest,
        benchmark="<experiment>/data/benchmarks/{task}.jsonl",
    output:
        samples="<experiment>/scores/{arm}-seed{seed}/{task}/shard-{shard}.parquet",
    log:
        "<logs>/evaluate/{arm}-seed{seed}/{task}/shard-{shard}.log",
    benchmark:
        "<benchmarks>/evaluate/{arm}-seed{seed}/{task}/shard-{shard}.jsonl"
    conda:
        evaluation_environment()
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
        " --shard {wildcards.shard:q} --threads {threads} --samples {output.samples:q}"
        " --work {params.work:q} --log {log:q}"


rule judge_samples:
    """Asks an LLM for a second opinion on an arm's answers to one benchmark, which no score depends on."""
    input:
        benchmark="<experiment>/data/benchmarks/{task}.jsonl",
        shards=sample_shards,
    output:
        judgements="<experiment>/scores/{arm}-seed{seed}/{task}/judge.parquet",
    log:
        "<logs>/judge_samples/{arm}-seed{seed}/{task}.log",
    benchmark:
        "<benchmarks>/judge_samples/{arm}-seed{seed}/{task}.jsonl"
    # It needs a network, as the prefetches do.
    localrule: True
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("judge_samples"),
    params:
        settings=lambda wildcards, output: as_json(settings_of.judge_settings(config, wildcards.task)),
        decides=lambda wildcards: deciding(settings_of.judge_settings(config, wildcards.task)),
        code=stage_code("judge_samples"),
        work=work("judge_samples", "{arm}-seed{seed}"),
    shell:
        "rsd judge-samples --benchmark {input.benchmark:q} --shards {input.shards:q} --settings {params.settings:q}"
        " --output {output.judgements:q} --work {params.work:q} --log {log:q}"


rule collect_scores:
    """Joins the shards of an arm's answers to one benchmark, and scores them as one."""
    input:
        benchmark="<experiment>/data/benchmarks/{task}.jsonl",
        shards=sample_shards,
        judge=judgements,
    output:
        samples="<experiment>/scores/{arm}-seed{seed}/{task}.parquet",
        scores="<experiment>/scores/{arm}-seed{seed}/{task}.json",
    log:
        "<logs>/collect_scores/{arm}-seed{seed}/{task}.log",
    benchmark:
        "<benchmarks>/collect_scores/{arm}-seed{seed}/{task}.jsonl"
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("collect_scores"),
    params:
        settings=lambda wildcards, output: as_json(
            settings_of.evaluation_settings(config, wildcards.arm, wildcards.task)
        ),
        decides=lambda wildcards: deciding(settings_of.evaluation_settings(config, wildcards.arm, wildcards.task)),
        code=stage_code("collect_scores"),
        judge=lambda wildcards, input: ["--judge", input.judge] if input.judge else [],
    shell:
        "rsd collect-scores --benchmark {input.benchmark:q} --shards {input.shards:q} {params.judge:q}"
        " --settings {params.settings:q} --samples {output.samples:q} --scores {output.scores:q} --log {log:q}"
