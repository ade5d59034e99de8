"""What came out: one table, figures, a markdown page, one HTML page that opens from disk.

Inputs: scores, traces, token analyses and the records of all stages. Outputs: results/<experiment>/report/,
results/<experiment>/config.yaml. The report also reads what is there of the jobs' benchmarks and of the shards' stamps,
for the costs alone: they are no inputs, since a lost benchmark must not make a model train again.
"""


rule write_config:
    """Writes the merged and checked configuration beside the results that it led to."""
    output:
        config=report("<experiment>/config.yaml", caption="../report/config.rst", category="Experiment"),
    log:
        "<logs>/write_config.log",
    benchmark:
        "<benchmarks>/write_config.jsonl"
    localrule: True
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("write_config"),
    params:
        settings=lambda wildcards: in_order(config),
    shell:
        "rsd write-config --settings {params.settings:q} --output {output.config:q} --log {log:q}"


rule compare:
    """Puts every score into one tidy table, with intervals, differences to the base, and the published values."""
    input:
        scores=collect("<experiment>/scores/{model}/{task}.json", model=measured(), task=config["run"]["tasks"]),
        samples=collect("<experiment>/scores/{model}/{task}.parquet", model=measured(), task=config["run"]["tasks"]),
    output:
        comparison=report(
            "<experiment>/report/comparison.csv",
            caption="../report/comparison.rst",
            category="Result",
            labels={"what": "table"},
        ),
        summary="<experiment>/report/comparison.json",
    log:
        "<logs>/compare.log",
    benchmark:
        "<benchmarks>/compare.jsonl"
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("compare"),
    params:
        settings=lambda wildcards: in_order(settings_of.compare_settings(config)),
        code=stage_code("compare"),
        scores=scores_folder,
    shell:
        "rsd compare --scores {params.scores:q} --settings {params.settings:q}"
        " --output {output.comparison:q} --summary {output.summary:q} --log {log:q}"


rule report:
    """Writes the figures, the tables, the markdown page and the HTML page."""
    input:
        comparison="<experiment>/report/comparison.csv",
        summary="<experiment>/report/comparison.json",
        scores=collect("<experiment>/scores/{model}/{task}.json", model=measured(), task=config["run"]["tasks"]),
        samples=collect("<experiment>/scores/{model}/{task}.parquet", model=measured(), task=config["run"]["tasks"]),
        problems="<experiment>/data/problems.jsonl",
        selections=collect("<experiment>/traces/{traces}/selection.json", traces=settings_of.trace_sets(config)),
        rows=collect("<experiment>/traces/{traces}/rows.parquet", traces=settings_of.trace_sets(config)),
        verdicts=collect("<experiment>/traces/{traces}/verdicts.parquet", traces=attempted()),
        tokens=token_files(),
        trainings=collect("<experiment>/trained/{model}/training.json", model=trained()),
        manifests=list(manifests().values()),
        problems_report="<experiment>/data/problems.json",
        overlap="<experiment>/data/overlap.json",
    output:
        html=report(
            "<experiment>/report/report.html",
            caption="../report/page.rst",
            category="Result",
            labels={"what": "page"},
        ),
        markdown="<experiment>/report/comparison.md",
        figures=report(
            directory("<experiment>/report/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        tables=report(
            directory("<experiment>/report/tables"),
            patterns=["{table}.csv"],
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    log:
        "<logs>/report.log",
    benchmark:
        "<benchmarks>/report.jsonl"
    conda:
        "../../envs/rsd.yaml"
    threads: 1
    resources:
        **needs("report"),
    params:
        settings=lambda wildcards: in_order(settings_of.report_settings(config)),
        code=stage_code("report"),
        scores=scores_folder,
        traces=beside_report("traces"),
        tokens=beside_report("tokens"),
        benchmarks=beside_report("benchmarks"),
        trainings=lambda wildcards, input: named("--training", trained(), input.trainings),
        manifests=lambda wildcards, input: named("--manifest", manifests(), input.manifests),
    shell:
        "rsd report --comparison {input.comparison:q} --summary {input.summary:q} --problems {input.problems:q}"
        " --traces {params.traces:q} --tokens {params.tokens:q} {params.trainings:q}"
        " --problems-report {input.problems_report:q} --overlap {input.overlap:q} {params.manifests:q}"
        " --scores {params.scores:q} --benchmarks {params.benchmarks:q} --settings {params.settings:q}"
        " --html {output.html:q} --markdown {output.markdown:q} --figures {output.figures:q}"
        " --tables {output.tables:q} --log {log:q}"
