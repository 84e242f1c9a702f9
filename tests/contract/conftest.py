"""Everything registered goes through the contract; with ``--plugin`` a file of one's own instead.

python -m pytest tests/contract --plugin refiners=path/to/mine.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from fabricate import image_folders, medmnist, tabular

from benchmarks import registry


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--plugin",
        action="append",
        default=[],
        metavar="FAMILY=FILE",
        help=f"put this file through the contract; FAMILY is one of {', '.join(registry.FAMILIES)}",
    )


def pytest_configure(config: pytest.Config) -> None:
    config._added = {family: [] for family in registry.FAMILIES}
    for given in config.getoption("--plugin", default=[]):
        family, _, path = given.partition("=")
        try:
            config._added[family] = registry.add(family, Path(path))
        except registry.BenchmarkError as error:
            raise pytest.UsageError(f"--plugin {given}: {error}") from error


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With a plug-in, what tests this machinery itself stays out, else it would start itself."""
    mine = collection_path == Path(__file__).with_name("test_plugin.py")
    return True if mine and config.getoption("--plugin", default=[]) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument ``dataset``, ``upstream``, ``refiner`` or ``model`` sees every name."""
    for argument, names in _subjects(metafunc.config).items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, names, scope="module")


def _subjects(config: pytest.Config) -> dict[str, list[str]]:
    arguments = dict(
        zip(("dataset", "upstream", "refiner", "model"), registry.FAMILIES, strict=True)
    )
    # Absent where pytest was started above this folder, and so asked nobody for it.
    if not config.getoption("--plugin", default=[]):
        return {argument: list(registry.modules(family)) for argument, family in arguments.items()}
    return {argument: config._added[family] for argument, family in arguments.items()}


@pytest.fixture
def files(dataset, tmp_path, monkeypatch) -> None:
    """Fabricate the files of a data set where there is a maker; weights at hand stay at hand."""
    data, real = tmp_path / "data", os.environ.get("SAFLEX_DATA", "")
    data.mkdir()
    if (weights := Path(real) / "weights").is_dir():
        (data / "weights").symlink_to(weights.resolve())
    if dataset in tabular.WRITERS:
        tabular.install(monkeypatch, data, dataset)
    elif dataset in medmnist.medmnist.NAMES:
        medmnist.install(monkeypatch, data, dataset)
    elif dataset == "captioned-bloodmnist":
        medmnist.install(monkeypatch, data, "bloodmnist", training=8100)
    elif dataset in ("cub", "cub-features"):
        image_folders.cub(data)
    elif dataset == "iwildcam-subset":
        image_folders.install_subset(monkeypatch, data)
    elif dataset == "iwildcam-wilds":
        image_folders.wilds(data)
        image_folders.accept_names(monkeypatch, data)
    else:
        return
    monkeypatch.setenv("SAFLEX_DATA", str(data))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
