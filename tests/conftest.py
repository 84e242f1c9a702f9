"""One thread per test process, and a clear word where real data is not at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# What no test marked `network` asks for is not looked for: absent weights are absent at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = os.environ.get("SAFLEX_DATA", "")
    if folder and Path(folder).is_dir():
        return
    missing = pytest.mark.skip(reason="SAFLEX_DATA names no folder: real data not at hand")
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(missing)
