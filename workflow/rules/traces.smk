"""Reasoning traces: attempts at every problem, and which of them become training rows.

Inputs: problems, models. Outputs: results/<experiment>/traces/<trace set>/: shard-NNN.parquet (attempts),
verdicts.parquet (each attempt's grade), rows.parquet (training rows), selection.json (counts). A set that selects from
another's attempts has no shards, one that is made of another's rows has the last two alone.
"""


rule traces:
    input:
        collect("<experiment>/traces/{traces}/selection.json", traces=settings_of.trace_sets(config)),


rule generate_traces:
    """Writes attempts at one share of the problems, by RSD or by sampling one model alone."""
    input:
        problems="<experiment>/data/problems.jsonl",
        student=lambda wildcards: model_manifest(config["traces"][wildcards.traces]["student"]),
        writer=writer_manifest,
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
        writer=lambda wildcards, input: optional(
            "--teacher" if config["traces"][wildcards.traces]["method"] == "rsd" else "--sampled",
            input.writer,
            of=os.path.dirname,
        ),
        work=work("generate_traces", "{traces}"),
    shell:
        "rsd generate-traces --problems {input.problems:q} --student {params.student:q} {params.writer:q}"
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
        shards=attempts,
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
    wildcard_constraints:
        traces=one_of(with_method(*lineage.ATTEMPTED, *lineage.SELECTED)),
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("select_traces"),
    params:
        settings=lambda wildcards: as_json(settings_of.select_settings(config, wildcards.traces)),
        code=stage_code("select_traces"),
        student=subpath(input.student, parent=True),
        # Journals of shards, which may go once this has read the shards.
        work=work("generate_traces", "{traces}"),
    shell:
        "rsd select-traces --problems {input.problems:q} --shards {input.shards:q} --student {params.student:q}"
        " --settings {params.settings:q} --verdicts {output.verdicts:q} --rows {output.rows:q}"
        " --summary {output.summary:q} --work {params.work:q} --log {log:q}"


rule derive_traces:
    """Makes training rows of those of another trace set: some of them, or all in the tokens of another student."""
    input:
        problems="<experiment>/data/problems.jsonl",
        of=source_rows,
        student=lambda wildcards: model_manifest(config["traces"][wildcards.traces]["student"]),
        source=source_student,
    output:
        rows="<experiment>/traces/{traces}/rows.parquet",
        summary=report(
            "<experiment>/traces/{traces}/selection.json",
            caption="../report/selection.rst",
            category="Traces",
            labels={"trace set": "{traces}"},
        ),
    log:
        "<logs>/derive_traces/{traces}.log",
    benchmark:
        "<benchmarks>/derive_traces/{traces}.jsonl"
    wildcard_constraints:
        traces=one_of(with_method(*lineage.DERIVED)),
    conda:
        "../../envs/rsd.yaml"
    threads: model_threads
    resources:
        **needs("derive_traces"),
    params:
        settings=lambda wildcards, output: as_json(settings_of.derive_settings(config, wildcards.traces)),
        decides=lambda wildcards: deciding(settings_of.derive_settings(config, wildcards.traces)),
        code=stage_code("derive_traces"),
        student=subpath(input.student, parent=True),
        source=lambda wildcards, input: optional("--source", input.source, of=os.path.dirname),
        # Of the set that it is made of: two filters of one set read its rows once.
        work=lambda wildcards: work("derive_traces", config["traces"][wildcards.traces]["of"]),
    shell:
        "rsd derive-traces --problems {input.problems:q} --of {input.of:q} --student {params.student:q}"
        " {params.source:q} --settings {params.settings:q} --threads {threads} --rows {output.rows:q}"
        " --summary {output.summary:q} --work {params.work:q} --log {log:q}"
