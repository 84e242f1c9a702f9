"""Source trees to run the workflow in."""

from __future__ import annotations

from pathlib import Path

import pytest
from source_tree import Tree, copy_tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return copy_tree(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Tree:
    """Two seeds of two bundles, long enough to be killed in between, run in peace."""
    tree = copy_tree(tmp_path_factory.mktemp("undisturbed"), seeds=2, epochs=40)
    tree.snakemake()
    return tree
