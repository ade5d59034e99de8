"""Renews the lock: requirements*.in -> requirements*.txt, every package pinned and hashed. Run by `make lock`.

Versions are what pip resolves here (Linux, Python 3.11), for the CPU build of torch. Hashes are those of every file
that the package index holds of a version, so that the lock also fits other Pythons and processors. torch has two files
of its own, since a machine takes one of its builds: requirements-cpu.txt, and requirements-cuda.txt with the CUDA
libraries. requirements-vllm.txt is an environment apart, for machines with an NVIDIA GPU, resolved by uv. Needs uv,
which requirements-dev.txt installs.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# Conda environment -> the lock files that it installs.
ENVIRONMENTS = {
    "rsd": ("requirements.txt", "requirements-cpu.txt", "requirements-cuda.txt"),
    "vllm": ("requirements-vllm.txt",),
}
HEADER = "# Made by `make lock` from {sources}; do not edit. envs/install.sh installs it.\n"
# Name -> (version, sha256 of the file that pip chose).
Pins = dict[str, tuple[str, str]]


def main() -> None:
    """Writes the lock files, and their digests into the conda environments' scripts."""
    run = resolve(["requirements.in"])
    everything = resolve(["requirements.in", "requirements-dev.in"], pinned=run)
    pods = resolve(["requirements.in", "requirements-kubernetes.in"], pinned=run)
    torch = run.pop("torch")
    if "+cpu" not in torch[0]:
        raise ValueError(
            f"pip chose torch {torch[0]}, which is no CPU build; let pip see one (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL)"
        )
    write("requirements.txt", "envs/requirements.in", with_hashes(run))
    for name, pins in (("dev", everything), ("kubernetes", pods)):
        extra = {package: pin for package, pin in pins.items() if package not in run and package != "torch"}
        write(f"requirements-{name}.txt", f"envs/requirements-{name}.in", with_hashes(extra))
    write("requirements-cpu.txt", "envs/requirements.in", f"torch=={torch[0]} \\\n    --hash=sha256:{torch[1]}\n")
    write("requirements-cuda.txt", "envs/requirements.in", cuda(torch[0].partition("+")[0], run))
    wanted = (HERE / "requirements-vllm.in").read_text(encoding="utf-8")
    apart = compile_with_uv(wanted, "--python-version=3.11", "--python-platform=x86_64-manylinux_2_28")
    write("requirements-vllm.txt", "envs/requirements-vllm.in", apart)
    for name in ENVIRONMENTS:
        stamp(name)


def resolve(files: list[str], pinned: Pins | None = None) -> Pins:
    """What pip would install for the requirement `files`."""
    with tempfile.TemporaryDirectory() as folder:
        report, constraints = Path(folder, "report.json"), Path(folder, "constraints.txt")
        constraints.write_text("".join(f"{name}=={version}\n" for name, (version, _) in (pinned or {}).items()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--constraint", str(constraints)]
        for file in files:
            command += ["--requirement", str(HERE / file)]
        subprocess.run(command, check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(): (
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in installs
    }


def with_hashes(pins: Pins) -> str:
    """The pins with the hashes of all their files in the index.

    Raises ValueError where the file that pip chose is not one of them.
    """
    text = compile_with_uv("".join(f"{name}=={version}\n" for name, (version, _) in sorted(pins.items())), "--no-deps")
    for name, (version, sha256) in pins.items():
        if sha256 not in text:
            raise ValueError(f"{name}=={version}: pip chose a file ({sha256}) that the index does not hold")
    return text


def cuda(version: str, pins: Pins) -> str:
    """torch as the index has it, and the libraries that only this build needs."""
    text = compile_with_uv(f"torch=={version}\n", "--universal", "--python-version=3.11", constraints=pins)
    blocks = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    return "".join(block for block in blocks if block.partition("==")[0] not in pins)


def compile_with_uv(requirements: str, *options: str, constraints: Pins | None = None) -> str:
    """What `uv pip compile` makes of the text of a requirements file."""
    with tempfile.TemporaryDirectory() as folder:
        source, limits = Path(folder, "pins.in"), Path(folder, "constraints.txt")
        source.write_text(requirements)
        limits.write_text("".join(f"{name}=={version}\n" for name, (version, _) in (constraints or {}).items()))
        command = ["uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate", *options]
        command += ["--constraint", str(limits), str(source)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def write(name: str, sources: str, text: str) -> None:
    """Writes one lock file."""
    (HERE / name).write_text(HEADER.format(sources=sources) + text, encoding="utf-8")
    print(f"{name}: {len(re.findall('^[^# ].*==', text, flags=re.MULTILINE))} packages")


def digest(environment: str) -> str:
    """16 hex digits over the lock files that a conda environment installs."""
    names = ENVIRONMENTS[environment]
    return hashlib.sha256(b"".join((HERE / name).read_bytes() for name in names)).hexdigest()[:16]


def stamp(environment: str) -> None:
    """Puts the lock's digest into a conda environment's script, so that a new lock makes a new environment."""
    script = HERE / f"{environment}.post-deploy.sh"
    text = script.read_text(encoding="utf-8")
    script.write_text(re.sub(r"^lock=.*$", f"lock={digest(environment)}", text, flags=re.MULTILINE), encoding="utf-8")


if __name__ == "__main__":
    main()
