"""Real services for the system tests, started and stopped by the tests themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "workflow"))

from source_tree import Tree, copy_tree  # noqa: E402


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Path:
    """A one-node Slurm; its folder holds the logs of its daemons."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([HERE / "slurm.sh", "start", folder], check=True, timeout=60)
    yield folder
    subprocess.run(["scancel", "--user=root"], check=False)
    subprocess.run([HERE / "slurm.sh", "stop", folder], check=True, timeout=60)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Tree:
    """Two seeds of two bundles, run in peace."""
    tree = copy_tree(tmp_path_factory.mktemp("undisturbed"), seeds=2, epochs=60)
    tree.snakemake()
    return tree


@pytest.fixture
def tree(tmp_path, undisturbed) -> Tree:
    """A copy of the same sources, with nothing run yet."""
    return copy_tree(tmp_path, seeds=2, epochs=60, source=undisturbed.root)
