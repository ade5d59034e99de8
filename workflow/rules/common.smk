"""Checks the configuration and holds the helpers of the rule files; no rules."""

import functools
import json
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The package of this very checkout, installed or not.
sys.path.insert(0, os.path.join(workflow.basedir, "workflow"))

from rsd import config as settings_of
from rsd import clusters, gpus, lease, lineage
from rsd import needs as job_needs
from rsd import stages
from rsd.checksums import set_aside_damaged
from rsd.clock import leave_the_future
from rsd.runtime import require_writable

try:
    config = settings_of.validate(config)
except ValueError as error:
    raise WorkflowError(str(error)) from None

# Without the bucket not even a dry-run knows which files are there.
bucket = {"default-storage-prefix": workflow.storage_settings.default_storage_prefix}
if clusters.unfilled(bucket):
    raise WorkflowError(clusters.explain_unfilled(bucket, sys.argv))

# A thousand shards have one digest, one manifest and one reckoning: what a plan asks for each job is found out once.
stage_code = functools.cache(stages.stage_code)


# --- what one job asks of the machine ---

# Whatever of a job's wildcards decides them.
_DECIDING = ("traces", "arm", "task", "reader", "model")


@functools.cache
def _needs_of(stage, names):
    return job_needs.needs_of(config, stage, dict(names))


def _asked(stage, resource):
    def ask(wildcards, attempt):
        names = tuple((name, wildcards.get(name)) for name in _DECIDING if name in wildcards.keys())
        return getattr(job_needs.grown(_needs_of(stage, names), attempt), resource)

    return ask


def needs(stage):
    """The resources of a stage's jobs, by their wildcards and attempt: memory and disk in MB, runtime in minutes, GPUs."""
    asked = {resource: _asked(stage, resource) for resource in job_needs.RESOURCES}
    gres = profile_resources().get("gres")
    return asked | {name: _in_its_words(name, asked["gpu"], gres) for name in clusters.gpus_for(0, gres)}


def _in_its_words(name, count, gres):
    """One of the resources that ask for `count` GPUs in the words of the cluster that the profile is for."""
    return lambda wildcards, attempt: clusters.gpus_for(count(wildcards, attempt), gres)[name]


def profile_resources():
    """Name -> what the profile, or the command line, writes into default-resources, unevaluated."""
    resources = workflow.resource_settings.default_resources or {}
    return {name: getattr(value, "raw", value) for name, value in resources.items()}


def model_threads(wildcards):
    """A share of the cores for a job that runs a model: as many run at once as there are GPUs for, or as is written.

    Snakemake knows nothing of GPUs without a profile; by its threads alone it starts no more jobs than that.
    """
    here = gpus.jobs_here(config) if workflow.local_exec else 1
    return max(1, workflow.cores // (config["jobs_at_once"] or here))


def evaluation_environment():
    """The environment file of the jobs that sample answers: vLLM wants versions of its own."""
    return f"../../envs/{'vllm' if config['evaluation']['backend'] == 'vllm' else 'rsd'}.yaml"


def require_cluster():
    """Stops a run before its first job where the profile has marks left to fill in, a shell would read what is not
    meant for it, or jobs of an earlier run go on."""
    settings = {f"{clusters.RESOURCES}{name}": value for name, value in profile_resources().items()}
    settings["container-image"] = workflow.remote_execution_settings.container_image
    if clusters.unfilled(settings):
        raise WorkflowError(clusters.explain_unfilled(settings, sys.argv))
    if not workflow.local_exec and (why := clusters.explain_shell_words(workflow.config_settings.config)):
        raise WorkflowError(why)
    if workflow.executor_plugin.name == "slurm" and (jobs := clusters.slurm_jobs_of(Path.cwd())):
        raise WorkflowError(clusters.explain_jobs(jobs, Path.cwd()))


def require_access():
    """Stops a run before its first job where a gated dataset or the judge's key cannot be had, or nothing be written."""
    if workflow.touch:
        return
    # Once a run, and not whenever the workflow is parsed.
    from rsd.access import check_access

    try:
        check_access(config)
        require_writable(os.path.join("results", config["experiment"]))
    except OSError as error:
        raise WorkflowError(str(error)) from None


def require_gpus():
    """Stops a run before its first job where this machine runs the jobs and has fewer GPUs than one of them needs."""
    if workflow.touch or not workflow.local_exec:
        return
    jobs = [(job.rule.name, job.wildcards) for job in workflow.dag.needrun_jobs() if job.rule.name in gpus.STAGES]
    count = gpus.most_gpus(config, [(stage, wildcards[gpus.STAGES[stage]]) for stage, wildcards in jobs])
    try:
        if count:
            lease.require(config["device"], count, "a job of this run")
    except ValueError as error:
        raise WorkflowError(str(error)) from None


# --- names ---


def one_of(names):
    """A wildcard's pattern: one of `names` and nothing else; nothing at all if there are none."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def keys(kind, made=None):
    """Folder name -> catalogue name of the sources of `kind` (models | datasets), but for models that are trained here.

    `made`: only those that the pipeline makes itself (True) or fetches (False).
    """
    key_of = {"models": settings_of.model_key, "datasets": settings_of.dataset_key}[kind]
    found = {}
    for name, entry in config[kind].items():
        trained_here = lineage.trained_by(entry["source"]) is not None
        if not trained_here and (made is None or entry["source"].startswith("pocket://") == made):
            found.setdefault(key_of(config, name), name)
    return found


def trained():
    """`arm-seedK` of every model that this run trains."""
    return settings_of.trained_names(config)


def readers():
    """Every name that a reader of the token analysis may have: an entry of models, or a trained arm with its seed."""
    arms = [arm for arm, entry in config["arms"].items() if entry["traces"]]
    return f"{one_of(config['models'])}|(?:{one_of(arms)})-seed\\d+"


def measured():
    """`arm-seedK` of every model that this run measures."""
    return [f"{arm}-seed{seed}" for arm in config["run"]["arms"] for seed in settings_of.arm_seeds(config, arm)]


def with_method(*methods):
    """The trace sets made by one of `methods`."""
    return [name for name, traces in config["traces"].items() if traces["method"] in methods]


def attempted():
    """The trace sets of this run with a verdict on every attempt; the others take the rows of such."""
    return [name for name in settings_of.trace_sets(config) if name not in with_method("filter", "recode")]


# --- files ---


@functools.cache
def model_manifest(name):
    """What says that the model `name` of the catalogue is there: fetched, made, or trained by this experiment."""
    if (made_by := lineage.trained_by(config["models"][name]["source"])) is not None:
        return "<experiment>/trained/{}-seed{}/manifest.json".format(*made_by)
    return f"<models>/{settings_of.model_key(config, name)}/manifest.json"


@functools.cache
def dataset_manifest(name):
    """What says that the dataset `name` of the catalogue is there."""
    return f"<datasets>/{settings_of.dataset_key(config, name)}/manifest.json"


def manifests():
    """kind/name -> manifest of everything that this run takes from outside."""
    outside = [
        name for name in settings_of.used_models(config) if lineage.trained_by(config["models"][name]["source"]) is None
    ]
    models = {f"models/{name}": model_manifest(name) for name in outside}
    return models | {f"datasets/{name}": dataset_manifest(name) for name in settings_of.used_datasets(config)}


def writer_manifest(wildcards):
    """The model that writes in a trace set beside its student: a teacher, or the one that is sampled; often none."""
    return [model_manifest(name) for name in lineage.writers(config["traces"][wildcards.traces])]


def attempts(wildcards):
    """The shards that a trace set is selected from: its own, or those of the set whose attempts it takes."""
    name = lineage.attempts_of(config, wildcards.traces)
    return [f"<experiment>/traces/{name}/{shard}.parquet" for shard in settings_of.shard_names(config, name)]


def source_rows(wildcards):
    """The training rows that a trace set is made of."""
    return f"<experiment>/traces/{config['traces'][wildcards.traces]['of']}/rows.parquet"


def source_student(wildcards):
    """The model whose tokens those rows are in, where they may have to be read in others."""
    traces = config["traces"][wildcards.traces]
    return model_manifest(config["traces"][traces["of"]]["student"]) if traces["method"] == "recode" else []


def other_rows(wildcards):
    """The rows of the arm whose number of tokens an arm trains on; none where it keeps to its epochs."""
    other = lineage.tokens_of(config, wildcards.arm)
    return f"<experiment>/traces/{config['arms'][other]['traces']}/rows.parquet" if other else []


def arm_manifest(wildcards):
    """The model of an arm: trained, or as it came."""
    arm = config["arms"][wildcards.arm]
    return "<experiment>/trained/{arm}-seed{seed}/manifest.json" if arm["traces"] else model_manifest(arm["model"])


def reader_manifest(wildcards):
    """The model that a trace set is read by: trained, or as it came."""
    name, seed = settings_of.split_reader(config, wildcards.reader)
    return model_manifest(name) if seed is None else f"<experiment>/trained/{name}-seed{seed}/manifest.json"


def written_shards(wildcards):
    """The attempts behind a trace set that say who wrote each token: those of RSD alone."""
    source = lineage.attempts_of(config, wildcards.traces)
    if config["traces"][source]["method"] != "rsd":
        return []
    return collect(
        "<experiment>/traces/{traces}/{shard}.parquet", traces=source, shard=settings_of.shard_names(config, source)
    )


def sample_shards(wildcards):
    """The shards of a model's samples of a benchmark."""
    folder = "<experiment>/scores/{arm}-seed{seed}/{task}"
    return [f"{folder}/{shard}.parquet" for shard in settings_of.task_shard_names(config, wildcards.task)]


def judgements(wildcards):
    """The judge's verdicts on a model's samples of a benchmark; none where nobody is asked."""
    asked = wildcards.task in settings_of.judged_tasks(config)
    return "<experiment>/scores/{arm}-seed{seed}/{task}/judge.parquet" if asked else []


def scores_folder(wildcards, input):
    """The folder of all scores, for the jobs that read every one of them."""
    return os.path.dirname(os.path.dirname(input.scores[0]))


def token_files():
    """The token analyses of this run: the tokens and what they sum up to."""
    pairs = settings_of.token_analyses(config)
    return [f"<experiment>/tokens/{traces}/{reader}.{kind}" for traces, reader in pairs for kind in ("parquet", "json")]


def beside_report(folder):
    """A folder of the results that the report stands in, for the job that writes it."""
    return lambda wildcards, output: os.path.join(os.path.dirname(os.path.dirname(output.html)), folder)


def work(stage, name=""):
    """Where a stage keeps its progress, so that it can go on after a kill; no job declares it."""
    return f"results/{config['experiment']}/work/{stage}/{name}".rstrip("/")


# --- parameters ---


def as_json(settings):
    """A slice of the configuration as the text that its job gets."""
    return json.dumps(settings, sort_keys=True)


def in_order(settings):
    """The same in the order of the configuration, in which arms and trace sets are shown."""
    return json.dumps(settings)


def deciding(settings):
    """The part of a slice that decides the result: lanes, schedule and device only decide how fast it comes.

    Jobs get their whole slice as a function of `output`, which Snakemake does not compare with the last run, and this.
    """
    return as_json({key: value for key, value in settings.items() if key not in settings_of.NOT_DECIDING})


def optional(flag, paths, of=str):
    """`flag PATH` as a list of words, nothing where `paths` holds none; `of` makes the word of the path."""
    return [word for path in ([paths] if isinstance(paths, str) else paths) for word in (flag, of(path))]


def named(flag, names, paths):
    """`flag NAME=PATH` for each, as a list of words."""
    return [word for name, path in zip(names, paths, strict=True) for word in (flag, f"{name}={path}")]


# --- damaged files, and files from the future ---

# They must be missing, or dated back, before it is decided what to make. Jobs of a cluster start a Snakemake of their own.
if workflow.is_main_process:
    shared = [os.path.join("results", kind, name) for kind in ("models", "datasets") for name in keys(kind)]
    dry = workflow.output_settings is not None and workflow.output_settings.dryrun
    if not dry:
        leave_the_future(os.path.join("results", config["experiment"]), shared)
    for line in set_aside_damaged(os.path.join("results", config["experiment"]), shared, rename=not dry):
        print(line, file=sys.stderr)
