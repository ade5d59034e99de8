"""Training problems and benchmarks as records.

Inputs: dataset folders. Outputs: results/<experiment>/data/: problems.jsonl, problems.json (what was dropped and why),
benchmarks/<task>.jsonl, overlap.json.
"""


rule data:
    input:
        "<experiment>/data/problems.json",
        "<experiment>/data/overlap.json",


rule prepare_problems:
    """Turns the training dataset into one record a problem, with stable ids, and reports duplicates and empty rows."""
    input:
        dataset=dataset_manifest(config["problems"]["dataset"]),
    output:
        problems="<experiment>/data/problems.jsonl",
        report="<experiment>/data/problems.json",
    log:
        "<logs>/prepare_problems.log",
    benchmark:
        "<benchmarks>/prepare_problems.jsonl"
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("prepare_problems"),
    params:
        settings=lambda wildcards: as_json(settings_of.problems_settings(config)),
        code=stage_code("prepare_problems"),
        dataset=subpath(input.dataset, parent=True),
    shell:
        "rsd prepare-problems --dataset {params.dataset:q} --settings {params.settings:q}"
        " --output {output.problems:q} --report {output.report:q} --log {log:q}"


rule prepare_benchmark:
    """Turns a benchmark's dataset into one record a problem."""
    input:
        dataset=lambda wildcards: dataset_manifest(config["tasks"][wildcards.task]["dataset"]),
    output:
        benchmark="<experiment>/data/benchmarks/{task}.jsonl",
    log:
        "<logs>/prepare_benchmark/{task}.log",
    benchmark:
        "<benchmarks>/prepare_benchmark/{task}.jsonl"
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("prepare_benchmark"),
    params:
        settings=lambda wildcards, output: as_json(settings_of.benchmark_settings(config, wildcards.task)),
        decides=lambda wildcards: deciding(settings_of.benchmark_settings(config, wildcards.task)),
        code=stage_code("prepare_benchmark"),
        dataset=subpath(input.dataset, parent=True),
    shell:
        "rsd prepare-benchmark --dataset {params.dataset:q} --settings {params.settings:q}"
        " --output {output.benchmark:q} --log {log:q}"


rule measure_overlap:
    """Counts training problems that are also in a benchmark, since they would flatter the trained arms."""
    input:
        problems="<experiment>/data/problems.jsonl",
        benchmarks=collect("<experiment>/data/benchmarks/{task}.jsonl", task=config["run"]["tasks"]),
    output:
        overlap="<experiment>/data/overlap.json",
    log:
        "<logs>/measure_overlap.log",
    benchmark:
        "<benchmarks>/measure_overlap.jsonl"
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("measure_overlap"),
    params:
        settings=lambda wildcards: as_json({}),
        code=stage_code("measure_overlap"),
        benchmarks=lambda wildcards, input: named("--benchmark", config["run"]["tasks"], input.benchmarks),
    shell:
        "rsd measure-overlap --problems {input.problems:q} {params.benchmarks:q}"
        " --settings {params.settings:q} --output {output.overlap:q} --log {log:q}"
