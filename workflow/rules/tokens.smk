"""Token analysis: how probable the models find the traces that they learn from, before training and after.

Inputs: training rows of a trace set, the attempts that they were taken from, a model folder (the reader). Outputs:
results/<experiment>/tokens/<trace set>/<reader>.parquet (every token of some problems) and <reader>.json (summary). A
reader is an entry of models or <arm>-seed<k>.
"""


rule tokens:
    input:
        [f"<experiment>/tokens/{traces}/{reader}.json" for traces, reader in settings_of.token_analyses(config)],


rule analyse_tokens:
    """Gives every token of a trace set its probability and rank under a model, and sums them up."""
    input:
        problems="<experiment>/data/problems.jsonl",
        rows="<experiment>/traces/{traces}/rows.parquet",
        shards=written_shards,
        reader=reader_manifest,
    output:
        tokens="<experiment>/tokens/{traces}/{reader}.parquet",
        summary="<experiment>/tokens/{traces}/{reader}.json",
    log:
        "<logs>/analyse_tokens/{traces}/{reader}.log",
    benchmark:
        "<benchmarks>/analyse_tokens/{traces}/{reader}.jsonl"
    wildcard_constraints:
        reader=readers(),
    conda:
        "../../envs/rsd.yaml"
    threads: model_threads
    resources:
        **needs("analyse_tokens"),
    params:
        settings=lambda wildcards, output: as_json(
            settings_of.analysis_settings(config, wildcards.traces, wildcards.reader)
        ),
        decides=lambda wildcards: deciding(settings_of.analysis_settings(config, wildcards.traces, wildcards.reader)),
        code=stage_code("analyse_tokens"),
        reader=subpath(input.reader, parent=True),
        shards=lambda wildcards, input: ["--shards", *input.shards] if input.shards else [],
        work=work("analyse_tokens", "{traces}/{reader}"),
    shell:
        "rsd analyse-tokens --rows {input.rows:q} {params.shards:q} --problems {input.problems:q}"
        " --reader {params.reader:q} --settings {params.settings:q} --threads {threads}"
        " --tokens {output.tokens:q} --summary {output.summary:q} --work {params.work:q} --log {log:q}"
