"""Models and datasets from outside, each in a folder with a manifest: fetched, or made from nothing (pocket://).

Inputs: the sources named in the configuration. Outputs: results/models/, results/datasets/, shared by all experiments.
The prefetch rules are the only ones with a network.
"""


rule downloads:
    input:
        list(manifests().values()),


rule prefetch_model:
    """Fetches a model at its revision, since every later stage runs without a network."""
    output:
        manifest="<models>/{model}/manifest.json",
    log:
        "<logs>/prefetch_model/{model}.log",
    benchmark:
        "<benchmarks>/prefetch_model/{model}.jsonl"
    wildcard_constraints:
        model=one_of(keys("models", made=False)),
    retries: 2
    localrule: True
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("prefetch_model"),
    params:
        folder=subpath(output.manifest, parent=True),
        # Functions of `output` are not compared with the last run: another mirror or name holds the same files.
        name=lambda wildcards, output: keys("models")[wildcards.model],
        settings=lambda wildcards, output: as_json(
            settings_of.prefetch_settings(config, "models", keys("models")[wildcards.model])
        ),
    shell:
        "rsd prefetch-model --name {params.name:q} --settings {params.settings:q} --output {params.folder:q} --log {log:q}"


rule prefetch_dataset:
    """Fetches a dataset at its revision, since every later stage runs without a network."""
    output:
        manifest="<datasets>/{dataset}/manifest.json",
    log:
        "<logs>/prefetch_dataset/{dataset}.log",
    benchmark:
        "<benchmarks>/prefetch_dataset/{dataset}.jsonl"
    wildcard_constraints:
        dataset=one_of(keys("datasets", made=False)),
    retries: 2
    localrule: True
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("prefetch_dataset"),
    params:
        folder=subpath(output.manifest, parent=True),
        # Functions of `output` are not compared with the last run: another mirror or name holds the same files.
        name=lambda wildcards, output: keys("datasets")[wildcards.dataset],
        settings=lambda wildcards, output: as_json(
            settings_of.prefetch_settings(config, "datasets", keys("datasets")[wildcards.dataset])
        ),
    shell:
        "rsd prefetch-dataset --name {params.name:q} --settings {params.settings:q} --output {params.folder:q} --log {log:q}"


rule make_pocket_model:
    """Trains a tiny teacher or student from nothing, so that the pipeline can be tried on any machine."""
    output:
        manifest="<models>/{model}/manifest.json",
    log:
        "<logs>/make_pocket_model/{model}.log",
    benchmark:
        "<benchmarks>/make_pocket_model/{model}.jsonl"
    wildcard_constraints:
        model=one_of(keys("models", made=True)),
    conda:
        "../../envs/rsd.yaml"
    threads: model_threads
    resources:
        **needs("make_pocket_model"),
    params:
        settings=lambda wildcards: as_json(
            settings_of.pocket_settings(config, config["models"][keys("models")[wildcards.model]]["source"])
        ),
        code=stage_code("make_pocket_model"),
        folder=subpath(output.manifest, parent=True),
        # Of no experiment, since the result is of none.
        work="results/work/make_pocket_model/{model}",
    shell:
        "rsd make-pocket-model --settings {params.settings:q} --threads {threads}"
        " --output {params.folder:q} --work {params.work:q} --log {log:q}"


rule make_pocket_dataset:
    """Writes arithmetic problems for training or for the test."""
    output:
        manifest="<datasets>/{dataset}/manifest.json",
    log:
        "<logs>/make_pocket_dataset/{dataset}.log",
    benchmark:
        "<benchmarks>/make_pocket_dataset/{dataset}.jsonl"
    wildcard_constraints:
        dataset=one_of(keys("datasets", made=True)),
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("make_pocket_dataset"),
    params:
        settings=lambda wildcards: as_json(
            settings_of.pocket_settings(config, config["datasets"][keys("datasets")[wildcards.dataset]]["source"])
        ),
        code=stage_code("make_pocket_dataset"),
        folder=subpath(output.manifest, parent=True),
        # Of no experiment, since the result is of none.
        work="results/work/make_pocket_dataset/{dataset}",
    shell:
        "rsd make-pocket-dataset --settings {params.settings:q} --threads {threads}"
        " --output {params.folder:q} --work {params.work:q} --log {log:q}"
