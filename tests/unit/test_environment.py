"""The lock, the scripts that install it, and the files around the project."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rsd.provenance import PACKAGES

ROOT = Path(__file__).parents[2]
ENVS = ROOT / "envs"
LOCKS = (
    "requirements.txt",
    "requirements-dev.txt",
    "requirements-kubernetes.txt",
    "requirements-cpu.txt",
    "requirements-cuda.txt",
    "requirements-vllm.txt",
)
SCRIPT = ENVS / "rsd.post-deploy.sh"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(name: str) -> dict[str, str | None]:
    """Package -> exact version or None, of a requirements*.in."""
    lines = (ENVS / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonical(package): version or None for package, _, version in pairs}


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Package -> version and number of hashes, of a lock file."""
    text = (ENVS / name).read_text(encoding="utf-8")
    blocks = re.split(r"^(?=[^\s#])", text, flags=re.MULTILINE)[1:]
    found = {}
    for block in blocks:
        match = re.match(r"([\w.-]+)==(\S+)", block)
        assert match, block
        found[canonical(match[1])] = (match[2], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block)))
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_one_version_and_hashes(name: str) -> None:
    packages = locked(name)
    assert packages
    assert all(hashes > 0 for _, hashes in packages.values())


def test_the_lock_keeps_what_the_requirements_ask_for() -> None:
    runtime = {**locked("requirements.txt"), **locked("requirements-cpu.txt")}
    locks = {"requirements.in": runtime}
    locks |= {f"requirements-{name}.in": locked(f"requirements-{name}.txt") for name in ("dev", "kubernetes", "vllm")}
    for name, lock in locks.items():
        for package, version in wanted(name).items():
            assert package in lock, f"{package} of {name} is not locked; run make lock"
            assert version in (None, lock[package][0].partition("+")[0]), f"{package}: run make lock"


def test_samples_of_vllm_are_asked_for_and_scored_by_the_same_versions() -> None:
    usual, vllm = wanted("requirements.in"), wanted("requirements-vllm.in")
    assert {name for name, version in usual.items() if version and name in vllm and vllm[name] != version} == {
        "transformers"
    }
    for name in ("lm-eval", "math-verify", "datasets", "torch"):
        assert vllm[name] == usual[name] is not None


def test_both_builds_of_torch_are_one_version_and_stand_in_no_other_lock() -> None:
    cpu, cuda = locked("requirements-cpu.txt"), locked("requirements-cuda.txt")
    assert cpu["torch"][0].partition("+")[0] == cuda["torch"][0]
    shared = locked("requirements.txt").keys() | locked("requirements-dev.txt").keys()
    assert not shared & (cpu.keys() | cuda.keys())


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found


def test_the_requirements_are_those_of_the_package() -> None:
    asked = project()["project"]
    # setuptools is there to install the package itself, safetensors and scipy come with torch's and lm-eval's world.
    assert set(map(canonical, asked["dependencies"])) <= wanted("requirements.in").keys()
    assert set(map(canonical, asked["optional-dependencies"]["dev"])) <= wanted("requirements-dev.in").keys()


def test_every_dependency_of_the_package_is_locked_within_its_range() -> None:
    asked, run = project()["project"], {**locked("requirements.txt"), **locked("requirements-cpu.txt")}
    builds = {canonical("setuptools"): run["setuptools"]}
    groups = [(asked["dependencies"], run), (asked["optional-dependencies"]["dev"], locked("requirements-dev.txt"))]
    groups.append((project()["build-system"]["requires"], builds))
    for requirements, lock in groups:
        for requirement in map(Requirement, requirements):
            assert lock[canonical(requirement.name)][0] in requirement.specifier, requirement


def rendered(name: str) -> str:
    """A lock file as envs/lock.py writes it: a header, then package after package in order, each with its hashes."""
    text = (ENVS / name).read_text(encoding="utf-8")
    header, *blocks = re.split(r"^(?=[^\s#])", text, flags=re.MULTILINE)
    packages = []
    for block in blocks:
        pin, *rest = block.split(" \\\n")
        hashes = [line.strip() for line in rest]
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==\S+( ; .+)?", pin), pin
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), pin
        packages.append((pin, sorted(set(hashes))))
    packages.sort(key=lambda package: re.split(r"\[|==", package[0])[0])
    return header + "".join(pin + "".join(f" \\\n    {line}" for line in hashes) + "\n" for pin, hashes in packages)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_one_form_so_that_its_renewal_shows_what_changed(name: str) -> None:
    source = {"cpu": "requirements", "cuda": "requirements"}.get(name[13:-4], name.removesuffix(".txt"))
    text = (ENVS / name).read_text(encoding="utf-8")
    assert text == rendered(name)
    header = f"# Made by `make lock` from envs/{source}.in; do not edit. envs/install.sh installs it.\n"
    assert text.startswith(header)


# --- the environment that the tests run in ---------------------------------------------------------------------------

OF_THE_MAKEFILE = pytest.mark.skipif(
    not (Path(sys.prefix) / "installed-dev").exists(), reason="this Python is not in a .venv made by the Makefile"
)


@OF_THE_MAKEFILE
def test_what_is_installed_is_the_lock_and_nothing_else() -> None:
    found = {canonical(item.name): item.version for item in importlib.metadata.distributions(path=site_packages())}
    own = {"pip", "rsd-pipeline"}
    build = "cpu" if "+cpu" in found["torch"] else "cuda"
    names = ("requirements.txt", f"requirements-{build}.txt", "requirements-dev.txt")
    lock = {package: version for name in names for package, (version, _) in locked(name).items()}
    installed = {name: version for name, version in found.items() if name not in own}
    expected = {name: version for name, version in lock.items() if name in found or build == "cpu"}
    assert installed == expected, "make clean, then make test"
    beside = importlib.metadata.distributions(path=[str(Path(sys.prefix) / "kubernetes")])
    wanted = {name: version for name, (version, _) in locked("requirements-kubernetes.txt").items()}
    assert {canonical(item.name): item.version for item in beside} == wanted, "make clean, then make test"


@OF_THE_MAKEFILE
def test_what_is_installed_fits_together() -> None:
    check = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@OF_THE_MAKEFILE
def test_no_source_of_a_package_that_decides_numbers_was_edited_after_its_installation() -> None:
    for name in sorted(set(PACKAGES) - {"torch"}):
        for file in importlib.metadata.files(name) or []:
            if file.suffix == ".py" and file.hash:
                digest = hashlib.new(file.hash.mode, Path(str(file.locate())).read_bytes()).digest()
                assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, file


def site_packages() -> list[str]:
    return [path for path in sys.path if path.startswith(sys.prefix) and path.endswith("site-packages")]


# --- recipes of images -----------------------------------------------------------------------------------------------

DOCKERFILE, APPTAINER = ENVS / "Dockerfile", ENVS / "apptainer.def"


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, comments gone and continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    pairs = [line.partition(" ") for line in joined.splitlines() if line]
    return [(name, rest) for name, _, rest in pairs]


def of(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


def sections() -> dict[str, list[str]]:
    """Section -> its lines, of the Apptainer recipe; its head is under the empty name."""
    found: dict[str, list[str]] = {"": []}
    for line in APPTAINER.read_text(encoding="utf-8").splitlines():
        if line.startswith("%"):
            found[line[1:]] = []
        elif line.strip() and not line.startswith("#"):
            found[list(found)[-1]].append(line.strip())
    return found


def commands(lines: list[str]) -> list[str]:
    return [command.strip() for line in lines for command in re.sub(r"--mount=\S+", "", line).split("&&")]


def test_both_recipes_begin_with_one_image_that_is_pinned_by_digest() -> None:
    arguments = dict(line.split("=", 1) for line in of("ARG"))
    assert arguments == dict(line.split("=", 1) for line in sections()["arguments"])
    assert arguments["TORCH"] == "cuda"
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}", arguments["BASE"])
    assert of("FROM") == ["${BASE}"]
    assert sections()[""] == ["Bootstrap: docker", "From: {{ BASE }}"]


def test_both_recipes_install_the_lock_and_nothing_else_from_an_index() -> None:
    docker, apptainer = commands(of("RUN")), commands(sections()["post"])
    install = "bash envs/install.sh /opt/venv/bin/python --kubernetes"
    assert f"RSD_TORCH=${{TORCH}} {install}" in docker
    path = install.replace("envs", "/rsd/envs")
    assert f"PIP_NO_CACHE_DIR=1 RSD_TORCH={{{{ TORCH }}}} {path}" in apptainer
    assert not [line for line in (*docker, *apptainer) if re.search(r"\b(pip|conda|curl|wget|ADD)\b", line)]
    shared = {line for line in docker if line.startswith(("apt-get", "git", "rm", "python"))}
    assert shared == {line for line in apptainer if line.startswith(("apt-get", "git", "rm", "python"))}


def test_an_image_holds_the_sources_and_nothing_that_is_made_or_secret() -> None:
    copied = {word for line in of("COPY") for word in line.split()[:-1]}
    top = {name for name in copied if "/" not in name}
    assert top == {line.split()[0] for line in sections()["files"]}
    assert all(line.split()[1] == f"/rsd/{line.split()[0]}" for line in sections()["files"])
    assert all((ROOT / name).exists() for name in copied)
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignore[1] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == top
    # What Snakemake and an editable installation need is there before and after.
    assert {"Snakefile", "config.yaml", "pyproject.toml", "README.md", "LICENSE", "envs", "workflow"} == top
    assert of("USER") == ["1000:1000"]
    assert instructions().index(("USER", "1000:1000")) > max(
        place for place, (name, _) in enumerate(instructions()) if name in ("RUN", "COPY")
    )
    assert not [line for line in of("ENV") if re.search(r"TOKEN|KEY|SECRET|PASSWORD", line)]


def test_pythons_agree_everywhere() -> None:
    settings = project()
    versions = SpecifierSet(settings["project"]["requires-python"])
    locked_for = re.findall(r"--python-version=([\d.]+)", (ENVS / "lock.py").read_text(encoding="utf-8"))
    images = re.findall(r"python:(\d+\.\d+)\.", DOCKERFILE.read_text(encoding="utf-8"))
    venvs = re.findall(r"python(\d+\.\d+) -m venv", DOCKERFILE.read_text() + APPTAINER.read_text())
    finder = (ENVS / "find-python.sh").read_text(encoding="utf-8")
    first = re.search(r"in \$\{PYTHON:.*?\} python(\d+\.\d+)", finder)
    oldest = re.search(r"sys\.version_info < \((\d+), (\d+)\)", finder)
    assert first
    assert oldest
    assert {*locked_for, *images, *venvs, first[1], settings["tool"]["mypy"]["python_version"]} == {"3.11"}
    assert settings["tool"]["ruff"]["target-version"] == "py311"
    assert f"{oldest[1]}.{oldest[2]}" in versions
    assert f"{oldest[1]}.{int(oldest[2]) - 1}" not in versions


def test_the_audit_asks_about_every_lock_and_overlooks_only_what_is_still_locked() -> None:
    text = (ENVS / "audit.sh").read_text(encoding="utf-8")
    asked = re.search(r"for lock in (.*); do", text)
    assert asked
    # The CPU build of torch is not on PyPI; the CUDA lock has its version.
    assert {f"{name}.txt" for name in asked[1].split()} == set(LOCKS) - {"requirements-cpu.txt"}
    assert "--strict" in text
    assert len(re.findall(r"--ignore-vuln", text)) == 2
    assert "sqlitedict" in locked("requirements.txt")


def test_no_registry_and_no_machine_is_named() -> None:
    for path in [*ENVS.iterdir(), ROOT / "Makefile", ROOT / ".ci" / "run"]:
        if path.is_file():
            # Those two are folders inside an image.
            text = re.sub(r"/opt/venv|/home/rsd", "", path.read_text(encoding="utf-8"))
            assert not re.search(r"https?://|--index-url|--find-links|file://|/opt/|/home/|/root/", text), path.name


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ("rsd", ["requirements.txt", "requirements-cpu.txt", "requirements-cuda.txt"]),
        ("vllm", ["requirements-vllm.txt"]),
    ],
)
def test_a_conda_environment_is_made_anew_for_a_new_lock(environment: str, names: list[str]) -> None:
    digest = hashlib.sha256(b"".join((ENVS / name).read_bytes() for name in names)).hexdigest()[:16]
    # Snakemake looks for it under the environment's name.
    assert f"\nlock={digest}\n" in (ENVS / f"{environment}.post-deploy.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["rsd", "vllm"])
def test_a_conda_environment_has_the_python_of_the_lock(name: str) -> None:
    environment = yaml.safe_load((ENVS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert "python=3.11" in environment["dependencies"]


def recording_python(folder: Path, body: str = "exit 0") -> Path:
    """A stand-in for Python that notes its arguments in calls.txt."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/calls.txt"\n{body}\n')
    python.chmod(0o755)
    return python


def post_deploy(
    prefix: Path, work: Path, script: Path = SCRIPT, **environment: str
) -> subprocess.CompletedProcess[str]:
    copy = work / "abc.post-deploy.sh"
    copy.write_bytes(script.read_bytes())
    variables = {**os.environ, "CONDA_PREFIX": str(prefix), "RSD_TORCH": "cpu", **environment}
    variables.pop("RSD_ROOT", None) if "RSD_ROOT" not in environment else None
    return subprocess.run(["bash", copy], cwd=work, env=variables, capture_output=True, text=True)


def test_the_conda_script_installs_the_lock_into_its_environment_from_any_folder(tmp_path: Path) -> None:
    recording_python(tmp_path / "conda")
    result = post_deploy(tmp_path / "conda", tmp_path, RSD_ROOT=str(ROOT))
    assert result.returncode == 0, result.stderr
    calls = (tmp_path / "conda" / "calls.txt").read_text().splitlines()
    installs = [call for call in calls if " install " in call and "--editable" not in call]
    assert all("--require-hashes" in call and "--no-deps" in call for call in installs)
    for name in ("requirements.txt", "requirements-cpu.txt"):
        assert any(call.endswith(f"/envs/{name}") for call in installs)
    assert calls[-2].endswith(f"--editable {ROOT}")
    assert calls[-1].endswith("check")


def test_the_conda_script_of_vllm_installs_its_lock_and_nothing_of_the_other(tmp_path: Path) -> None:
    recording_python(tmp_path / "conda")
    result = post_deploy(tmp_path / "conda", tmp_path, ENVS / "vllm.post-deploy.sh", RSD_ROOT=str(ROOT))
    assert result.returncode == 0, result.stderr
    setuptools, lock, project = (tmp_path / "conda" / "calls.txt").read_text().splitlines()
    assert all("--require-hashes" in call and "--no-deps" in call for call in (setuptools, lock))
    assert lock.endswith("/envs/requirements-vllm.txt")
    assert project.endswith(f"--editable {ROOT}")


@pytest.mark.parametrize("name", ["rsd", "vllm"])
def test_the_conda_script_says_where_to_start_snakemake(tmp_path: Path, name: str) -> None:
    recording_python(tmp_path / "conda")
    result = post_deploy(tmp_path / "conda", tmp_path, ENVS / f"{name}.post-deploy.sh")
    assert result.returncode == 1
    assert "start snakemake there, or set RSD_ROOT" in result.stderr
    assert not (tmp_path / "conda" / "calls.txt").exists()


@pytest.mark.parametrize(
    ("wish", "body", "builds"),
    [
        ("cpu", "exit 0", ["requirements-cpu.txt"]),
        ("cuda", "exit 0", ["requirements-cuda.txt"]),
        # Where pip finds no CPU build, the other one runs as well.
        ("cpu", 'case "$*" in *requirements-cpu.txt) exit 1;; esac', ["requirements-cpu.txt", "requirements-cuda.txt"]),
    ],
)
def test_the_build_of_torch_fits_the_machine_and_what_pip_finds(
    tmp_path: Path, wish: str, body: str, builds: list[str]
) -> None:
    python = recording_python(tmp_path, body)
    subprocess.run(["bash", ENVS / "install.sh", python], env={**os.environ, "RSD_TORCH": wish}, check=True)
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert [call.rpartition("/")[2] for call in calls if re.search(r"requirements-cu?[dp]", call)] == builds


def find_python(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": f"{path}:/usr/bin:/bin", **environment}
    return subprocess.run(["bash", ENVS / "find-python.sh"], env=variables, capture_output=True, text=True)


def fake_python(folder: Path, name: str, version: tuple[int, int], venv: bool = True) -> None:
    """A stand-in that answers the three questions of find-python.sh."""
    folder.mkdir(exist_ok=True)
    lines = [
        "#!/bin/sh",
        'case "$2" in',
        f"*print*) echo {version[0]}.{version[1]};;",
        f"*exit*) exit {int(version < (3, 11))};;",
        f"*venv*) exit {int(not venv)};;",
        "esac",
    ]
    (folder / name).write_text("\n".join(lines) + "\n")
    (folder / name).chmod(0o755)


def test_the_python_of_the_lock_is_taken_first_and_a_broken_one_is_passed_over(tmp_path: Path) -> None:
    fake_python(tmp_path / "bin", "python3.12", (3, 12))
    fake_python(tmp_path / "bin", "python3", (3, 13))
    (tmp_path / "bin" / "python3.11").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "bin" / "python3.11").chmod(0o755)
    assert find_python(tmp_path / "bin").stdout.strip() == str(tmp_path / "bin" / "python3.12")
    fake_python(tmp_path / "bin", "python3.11", (3, 11))
    assert find_python(tmp_path / "bin").stdout.strip() == str(tmp_path / "bin" / "python3.11")


def test_a_python_without_venv_or_too_old_is_named_with_the_remedy(tmp_path: Path) -> None:
    for name in ("python3.11", "python3.12", "python3.13", "python3"):
        fake_python(tmp_path / "bin", name, (3, 9))
    result = find_python(tmp_path / "bin")
    assert result.returncode == 1
    assert "python3 is Python 3.9, too old" in result.stderr
    assert "Python 3.11 or newer is needed" in result.stderr
    fake_python(tmp_path / "bin", "python3", (3, 11), venv=False)
    assert "apt-get install python3.11-venv" in find_python(tmp_path / "bin").stderr


def test_the_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == "Apache-2.0"
    assert "2509.22230" in str(citation["preferred-citation"]["identifiers"])


def test_scripts_are_executable_and_stop_at_the_first_error() -> None:
    for path in [*ENVS.glob("*.sh"), ROOT / ".ci" / "run"]:
        assert os.access(path, os.X_OK), path.name
        assert "\nset -euo pipefail\n" in path.read_text(encoding="utf-8"), path.name


def test_every_claim_about_security_names_tests_that_are_there() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "claim | test" not in line]
    assert len(rows) >= 15
    for row in rows:
        tests = re.findall(r"`(tests/\S+\.py)::(\w+)`", row)
        assert tests, row
        for path, name in tests:
            assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), name
