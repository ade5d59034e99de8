"""Reasoning traces: attempts at every problem, and which of them become training rows.

Inputs: problems, models. Outputs: results/<experiment>/traces/<trace set>/: shard-NNN.parquet (attempts),
verdicts.parquet (each attempt's grade), rows.parquet (training rows), selection.json (counts).
"""


rule traces:
    input:
        collect("<experiment>/traces/{traces}/selection.json", traces=settings_of.trace_sets(config)),


rule generate_traces:
    """Writes attempts at one share of the problems, by RSD or by sampling one model alone."""
    input:
        problems="<experiment>/data/problems.jsonl",
        student=lambda wildcards: model_manifest(config["traces"][wildcards.traces]["student"]),
        teacher=teacher_manifest,
    output:
        shard="<experiment>/traces/{traces}/shard-{shard}.parquet",
    log:
        "<logs>/generate_traces/{traces}/shard-{shard}.log",
    benchmark:
        "<benchmarks>/generate_traces/{traces}/shard-{shard}.jsonl"
    wildcard_constraints:
        traces=one_of(with_method("rsd", "sample")),
    conda:
        "../../envs/rsd.yaml"
    threads: model_threads
    resources:
        **needs("generate_traces"),
    params:
        settings=lambda wildcards, output: as_json(settings_of.traces_settings(config, wildcards.traces)),
        decides=lambda wildcards: deciding(settings_of.traces_settings(config, wildcards.traces)),
        code=stage_code("generate_traces"),
        student=subpath(input.student, parent=True),
        teacher=lambda wildcards, input: ["--teacher", os.path.dirname(input.teacher)] if input.teacher else [],
        work=work("generate_traces", "{traces}"),
    shell:
        "rsd generate-traces --problems {input.problems:q} --student {params.student:q} {params.teacher:q}"
        " --settings {params.settings:q} --shard {wildcards.shard:q} --threads {threads}"
        " --output {output.shard:q} --work {params.work:q} --log {log:q}"


rule convert_traces:
    """Takes a dataset's own traces as attempts, for direct distillation."""
    input:
        problems="<experiment>/data/problems.jsonl",
        student=lambda wildcards: model_manifest(config["traces"][wildcards.traces]["student"]),
    output:
        shard="<experiment>/traces/{traces}/shard-000.parquet",
    log:
        "<logs>/convert_traces/{traces}.log",
    benchmark:
        "<benchmarks>/convert_traces/{traces}.jsonl"
    wildcard_constraints:
        traces=one_of(with_method("dataset")),
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("convert_traces"),
    params:
        settings=lambda wildcards: as_json(settings_of.traces_settings(config, wildcards.traces)),
        code=stage_code("convert_traces"),
        student=subpath(input.student, parent=True),
    shell:
        "rsd convert-traces --problems {input.problems:q} --student {params.student:q}"
        " --settings {params.settings:q} --output {output.shard:q} --log {log:q}"


rule select_traces:
    """Grades every attempt and picks the training rows, counting why the others were not taken."""
    input:
        problems="<experiment>/data/problems.jsonl",
        student=lambda wildcards: model_manifest(config["traces"][wildcards.traces]["student"]),
        shards=lambda wildcards: collect(
            "<experiment>/traces/{traces}/{shard}.parquet",
            traces=wildcards.traces,
            shard=settings_of.shard_names(config, wildcards.traces),
        ),
    output:
        verdicts="<experiment>/traces/{traces}/verdicts.parquet",
        rows="<experiment>/traces/{traces}/rows.parquet",
        summary=report(
            "<experiment>/traces/{traces}/selection.json",
            caption="../report/selection.rst",
            category="Traces",
            labels={"trace set": "{traces}"},
        ),
    log:
        "<logs>/select_traces/{traces}.log",
    benchmark:
        "<benchmarks>/select_traces/{traces}.jsonl"
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("select_traces"),
    params:
        settings=lambda wildcards: as_json(settings_of.select_settings(config, wildcards.traces)),
        code=stage_code("select_traces"),
        student=subpath(input.student, parent=True),
    shell:
        "rsd select-traces --problems {input.problems:q} --shards {input.shards:q} --student {params.student:q}"
        " --settings {params.settings:q} --verdicts {output.verdicts:q} --rows {output.rows:q}"
        " --summary {output.summary:q} --log {log:q}"
