"""docs/protocol.md: the settings, files and data sets that it names are those of the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from benchmarks import registry
from benchmarks import suite as suites
from benchmarks.sources import Source
from benchmarks.upstream.crop import Crop
from benchmarks.upstream.cutmix import TabularCutMix

ROOT = Path(__file__).parent.parent
SAME_FILES = ("cub-features", "captioned-bloodmnist")  # those of cub and bloodmnist
TEXT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def cells(section: str) -> dict[str, list[str]]:
    """Rows of a section's table by their first cell."""
    part = TEXT.split(f"## {section}")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in lines}


def test_files_that_it_names_exist():
    ours = re.findall(r"`((?:benchmarks|upstream|refiners|generate|suites|tests)/[\w./-]+)`", TEXT)
    assert len(ours) > 8
    for name in ours:
        assert (ROOT / name).exists() or (ROOT / "benchmarks" / name).exists(), name
    for name in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (ROOT / "docs" / name).exists(), name


def test_rows_that_it_names_as_controls_are_rows():
    part = TEXT.split("## Controls")[1].split("\n## ")[0]
    named = set(re.findall(r"`([\w+-]+)`", part))
    assert len(named) > 8
    assert named - {*suites.names(), "validation_batch"} <= set(suites.shared_rows())


def test_settings_that_it_states_are_the_defaults():
    table = cells("Tables 1, 7 and 8: MedMNIST")
    defaults = inspect.signature(Crop).parameters
    crop = table["Soft-Augmentation: crop"][2]
    assert f"`sigma` {defaults['sigma'].default:g} " in crop
    assert f"`background` {defaults['background'].default:g}" in crop
    assert f"`whole` {defaults['whole'].default:g} " in table["... its end"][2]
    given = inspect.signature(TabularCutMix).parameters["probability"].default
    assert f"probability {given:g} " in cells("Tables 2, 5 and 6: tabular")["CutMix"][1]


def test_shares_that_it_states_are_those_of_the_suite():
    cell = cells("Table 3: generated images")["How images are added"][2]
    stated = set(re.findall(r"= (0\.\d+)", cell))
    plan = suites.plan(suites.load("paper"), table="3")
    assert stated == {
        str(spec.settings.clean_share)
        for spec in plan
        if spec.upstream in ("img2img", "extra-real")
    }


def test_every_data_set_with_an_official_address_is_listed():
    listed = " ".join(row[0] for row in cells("Official downloads: never run").values())
    for name in registry.modules("datasets"):
        module = registry.module("datasets", name)
        published: list[Source] = []
        for attribute in ("SOURCES", "PARTS"):
            published += getattr(module, attribute, {}).get(name, ())
        if name not in SAME_FILES and any(source.urls for source in published):
            assert name in listed, name
