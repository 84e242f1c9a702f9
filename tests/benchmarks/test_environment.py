"""The lock file covers what pyproject.toml asks for, and environment.yml says the same pins."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def requirements() -> list[Requirement]:
    """What the library and the benchmark ask for; the library itself comes from this folder."""
    library, benchmark = (
        tomllib.loads((ROOT / place / "pyproject.toml").read_text())["project"]
        for place in (".", "benchmarks")
    )
    extras = [line for extra in benchmark["optional-dependencies"].values() for line in extra]
    named = library["dependencies"] + benchmark["dependencies"] + extras
    return [Requirement(line) for line in named if line != library["name"]]


def test_environment_has_the_pins_of_the_lock(lock):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    assert pip == [f"{name}=={version}" for name, version in lock.items()]


def test_environment_and_project_want_the_same_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (python,) = [d for d in environment["dependencies"] if str(d).startswith("python")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=" + python.split("=")[1]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_lock_satisfies_pyproject(lock, requirement):
    name = canonicalize_name(requirement.name)
    assert name in lock, f"{requirement} has no pin"
    assert requirement.specifier.contains(lock[name], prereleases=True)


def test_every_pin_is_exact_and_without_an_address():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][\w.+!]*", line), line


@pytest.mark.parametrize(
    "file",
    [
        "requirements.lock",
        "environment.yml",
        "pyproject.toml",
        "benchmarks/pyproject.toml",
        "Makefile",
    ],
)
def test_no_registry_address(file):
    text = (ROOT / file).read_text()
    assert not re.search(r"index-url|find-links|https?://\S*(pypi|simple)", text)


def test_installed_packages_are_those_of_the_lock(lock):
    from importlib.metadata import version

    named = {canonicalize_name(r.name) for r in requirements()}
    assert {name: version(name) for name in named} == {name: lock[name] for name in named}
