"""`doctor`: what is missing on this machine, said before a long run finds out. Imports no torch itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import yaml

from benchmarks import record, sources, weights
from benchmarks.errors import BenchmarkError
from benchmarks.forecast import images as generation
from benchmarks.suite import Suite, plan

ROOT = Path(__file__).resolve().parents[2]
PYTHON = (3, 11)
FREE_GIGABYTES = 5
SUBMIT_SECONDS = 30


@dataclass(frozen=True)
class Finding:
    """One thing looked at. Only ``missing`` makes the command fail; ``note`` is worth knowing."""

    level: Literal["ok", "note", "missing"]
    subject: str
    text: str


def main(suite: Suite, *, results: Path | None = None, uri: str | None = None) -> int:
    """Look at everything a suite needs and print a line each; 0 if nothing is missing, else 1."""
    results = results or record.folder(suite.name)
    found = list(findings(suite, results=results, uri=uri))
    for finding in found:
        print(f"{finding.level:<8} {finding.subject:<10} {finding.text}")
    missing = sum(finding.level == "missing" for finding in found)
    print(f"{missing} missing" if missing else "nothing is missing")
    return 1 if missing else 0


def findings(suite: Suite, *, results: Path, uri: str | None = None) -> Iterator[Finding]:
    """Look at python, packages, disk, data, GPU, Slurm and the MLflow store in turn."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        python,
        packages,
        lambda: disk(results),
        lambda: data(suite),
        lambda: models(suite),
        gpu,
        slurm,
        lambda: store(results, uri),
    ]
    for check in checks:
        yield from check()


def python() -> Iterator[Finding]:
    here = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        yield Finding("missing", "python", f"{here}; 3.11 or newer is needed")
    else:
        yield Finding("ok", "python", f"{here} ({sys.executable})")


def packages(lock: Path = ROOT / "requirements.lock") -> Iterator[Finding]:
    """Compare what is installed with the lock file."""
    if not lock.is_file():
        yield Finding("note", "packages", f"no {lock.name} here to compare with")
        return
    pins = dict(line.split("==") for line in lock.read_text().split() if "==" in line)
    absent, other = [], []
    for name, pin in pins.items():
        try:
            if (here := version(name)) != pin:
                other.append(f"{name} {here} (lock: {pin})")
        except PackageNotFoundError:
            absent.append(name)
    if absent:
        yield Finding("missing", "packages", f"{_some(absent)}: `pip install -r requirements.lock`")
    if other:
        yield Finding("note", "packages", f"other versions than the lock's: {_some(other)}")
    if not absent and not other:
        yield Finding("ok", "packages", f"all {len(pins)} as in requirements.lock")


def disk(results: Path, needed: float = FREE_GIGABYTES) -> Iterator[Finding]:
    """Look for space and a folder that can be written to."""
    place = _existing(results)
    free = shutil.disk_usage(place).free / 1e9
    text = f"{free:.0f} GB free under {place}"
    if not os.access(place, os.W_OK):
        yield Finding("missing", "disk", f"{place} is not writable: give another --results")
    elif free < needed:
        yield Finding("missing", "disk", f"{text}; {needed:g} GB are wanted")
    else:
        yield Finding("ok", "disk", text)


def data(suite: Suite) -> Iterator[Finding]:
    """Find and verify the files of every data set that the suite runs."""
    for name in sorted({spec.settings.dataset.name for spec in plan(suite)}):
        if not (files := sources.files(name)):
            yield Finding("ok", "data", f"{name}: ships with a package")
        for source in sources.lacking(name):
            size = f"{source.size / 1e6:,.1f} MB" if source.size else "size not stated"
            text = f"{name}, {source.name} ({size}): `python -m benchmarks fetch --dataset {name}`"
            yield Finding("missing", "data", text)
        for alternatives in (several for several in files if any(map(sources.find, several))):
            try:
                located = sources.locate_any(alternatives, name)
                level = "ok" if located.verified else "note"
                yield Finding(level, "data", f"{name}: {located.path.name}, {located.standing}")
            except BenchmarkError as error:
                yield Finding("missing", "data", str(error))


def models(suite: Suite) -> Iterator[Finding]:
    """Look for pretrained weights of backbones and pipelines, and for sets of generated images."""
    specs = plan(suite)
    lacking = [weights.absent(source) for source in weights.missing(specs)]
    lacking += [generation.absent(wanted) for wanted in generation.missing(specs)]
    yield from (Finding("missing", "weights", text) for text in lacking)
    if not lacking:
        yield Finding("ok", "weights", "none is missing")
    for name in generation.unmade(specs):
        yield Finding("note", "images", f"{name}: not generated yet, the workflow does it first")


def gpu() -> Iterator[Finding]:
    """Ask the driver, not torch: it answers at once and without taking a device."""
    answer = _ask(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    if answer is None or answer.returncode:
        yield Finding("note", "GPU", "none on this machine; runs use the CPU")
        return
    devices = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    yield Finding("ok", "GPU", "; ".join(devices))


def slurm(profile: Path = ROOT / "profiles" / "slurm" / "config.yaml") -> Iterator[Finding]:
    """Submit a job to nobody with the profile's partition and account (`sbatch --test-only`)."""
    if shutil.which("sbatch") is None:
        yield Finding("note", "Slurm", "no sbatch on this machine")
        return
    command = ["sbatch", "--test-only", *submission(profile), "--wrap", "true"]
    answer = _ask(command)
    if answer is None:
        yield Finding(
            "missing", "Slurm", f"no answer within {SUBMIT_SECONDS} s: {' '.join(command)}"
        )
    elif answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Finding(
            "missing", "Slurm", f"refuses `{' '.join(command)}`: {reason}; change {profile}"
        )
    else:
        yield Finding("ok", "Slurm", f"takes a job with {' '.join(submission(profile))}")


def submission(profile: Path) -> list[str]:
    """Options of sbatch that a profile's resources of a bundle come to."""
    content = yaml.safe_load(profile.read_text(encoding="utf-8"))
    wanted = {**(content.get("default-resources") or {})}
    wanted |= (content.get("set-resources") or {}).get("bundle") or {}
    plain = {name: str(value).strip("'\"") for name, value in wanted.items()}
    options = []
    if "slurm_partition" in plain:
        options.append(f"--partition={plain['slurm_partition']}")
    if "slurm_account" in plain:
        options.append(f"--account={plain['slurm_account']}")
    if "gres" in plain:
        options.append(f"--gres={plain['gres']}")
    if "gpu_model" in plain:
        options.append(f"--gpus={plain['gpu_model']}:{plain.get('gpu', 1)}")
    elif "gpu" in plain:
        options.append(f"--gpus={plain['gpu']}")
    return options


def store(results: Path, uri: str | None = None) -> Iterator[Finding]:
    """Look whether the MLflow store may lie where it lies, and answers."""
    from benchmarks.tracking import store as stores

    try:
        place = stores.resolve(results, uri)
    except BenchmarkError as error:
        yield Finding("missing", "MLflow", str(error))
        return
    if place.startswith("http"):
        from http.client import HTTPException
        from urllib.request import urlopen

        try:
            with urlopen(f"{place}/health", timeout=5) as answer:
                if answer.read(10).strip() == b"OK":
                    yield Finding("ok", "MLflow", f"{place} answers {answer.status}")
                else:
                    text = f"{place} answers, but not as MLflow does: a sign-in page or a proxy?"
                    yield Finding("missing", "MLflow", text)
        except (OSError, ValueError, HTTPException) as error:
            yield Finding("missing", "MLflow", f"{place} does not answer: {error}")
        return
    if place.startswith(stores.SQLITE):
        path = Path(place.removeprefix(stores.SQLITE))
        kind = stores.file_system(path)
        there = "is there" if path.exists() else "will be made by `track sync`"
        yield Finding("ok", "MLflow", f"{path} ({kind or 'unknown file system'}) {there}")


def _ask(command: list[str]) -> subprocess.CompletedProcess | None:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=SUBMIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _some(names: list[str], limit: int = 5) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
