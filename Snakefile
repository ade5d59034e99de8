# The pipeline, from models and problems to the report. What depends on what is in workflow/rules/, what runs is in
# config.yaml. Start it here, in the repository's root:
#
#   snakemake --cores all                 everything that config.yaml names
#   snakemake --cores all traces          up to one stage: downloads, data, traces, models, scores, tokens, report
#   snakemake --dry-run                   only say what would run
#
# A smaller or other experiment: add --configfile workflow/experiments/pocket.yaml.
from snakemake.utils import min_version

min_version("9.27")


configfile: "config.yaml"


# Checks the configuration; helpers of the rules.
include: "workflow/rules/common.smk"


report: "workflow/report/workflow.rst"


pathvars:
    models="results/models",
    datasets="results/datasets",
    experiment=f"results/{config['experiment']}",
    logs=f"results/{config['experiment']}/logs",
    benchmarks=f"results/{config['experiment']}/benchmarks",


wildcard_constraints:
    model=one_of(keys("models")),
    dataset=one_of(keys("datasets")),
    task=one_of(config["tasks"]),
    traces=one_of(config["traces"]),
    arm=one_of(config["arms"]),
    shard=r"\d{3}",
    seed=r"\d+",


onstart:
    require_cluster()
    require_access()
    require_gpus()


rule all:
    input:
        "<experiment>/report/report.html",
        "<experiment>/config.yaml",


include: "workflow/rules/models.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/traces.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tokens.smk"
include: "workflow/rules/report.smk"
