"""Students fine-tuned on traces: one rule for every arm, so that the arms differ in their rows alone.

Inputs: a model, training rows. Outputs: results/<experiment>/trained/<arm>-seed<k>/: a model folder with its
manifest.json, and training.json (loss curve, counts).
"""


rule models:
    input:
        [model_manifest(name) for name in settings_of.used_models(config)],
        collect("<experiment>/trained/{model}/manifest.json", model=trained()),


rule train:
    """Fine-tunes an arm's model on the rows of its trace set, under one training seed."""
    input:
        model=lambda wildcards: model_manifest(config["arms"][wildcards.arm]["model"]),
        rows=lambda wildcards: f"<experiment>/traces/{config['arms'][wildcards.arm]['traces']}/rows.parquet",
        tokens_of=other_rows,
    output:
        manifest="<experiment>/trained/{arm}-seed{seed}/manifest.json",
        training="<experiment>/trained/{arm}-seed{seed}/training.json",
    log:
        "<logs>/train/{arm}-seed{seed}.log",
    benchmark:
        "<benchmarks>/train/{arm}-seed{seed}.jsonl"
    conda:
        "../../envs/rsd.yaml"
    threads: model_threads
    resources:
        **needs("train"),
    params:
        settings=lambda wildcards, output: as_json(settings_of.training_settings(config, wildcards.arm)),
        decides=lambda wildcards: deciding(settings_of.training_settings(config, wildcards.arm)),
        code=stage_code("train"),
        model=subpath(input.model, parent=True),
        tokens_of=lambda wildcards, input: optional("--tokens-of", input.tokens_of),
        folder=subpath(output.manifest, parent=True),
        work=work("train", "{arm}-seed{seed}"),
    shell:
        "rsd train --model {params.model:q} --rows {input.rows:q} {params.tokens_of:q} --settings {params.settings:q}"
        " --seed {wildcards.seed:q} --threads {threads}"
        " --output {params.folder:q} --work {params.work:q} --log {log:q}"
