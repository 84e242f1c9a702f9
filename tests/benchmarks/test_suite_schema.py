"""The schema that editors check suites by: current, true of every shipped suite, and able to object."""

from __future__ import annotations

import copy

import jsonschema
import pytest
import yaml

from benchmarks.suite import SUITES, names
from benchmarks.suites import schema

MODELINE = "# yaml-language-server: $schema=schema.json"
CHECK = jsonschema.Draft202012Validator(schema.schema())


def content(name: str) -> dict:
    return yaml.safe_load((SUITES / f"{name}.yaml").read_text(encoding="utf-8"))


def test_the_committed_schema_is_what_the_models_say():
    assert schema.PLACE.read_text(encoding="utf-8") == schema.text(), (
        "write it anew: python -m benchmarks.suites.schema"
    )


@pytest.mark.parametrize("name", names())
def test_every_shipped_suite_keeps_it_and_names_it_in_its_first_line(name):
    assert [error.message for error in CHECK.iter_errors(content(name))] == []
    assert (SUITES / f"{name}.yaml").read_text(encoding="utf-8").startswith(MODELINE + "\n")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("suite",), None),
        (("seed",), 3),
        (("tables", "demo-tabular", "metric"), "acuracy"),
        (("tables", "demo-tabular", "recipe", "epochs"), 0),
        (("tables", "demo-tabular", "recipe", "epoch"), 3),
        (("tables", "demo-tabular", "backbones"), ["mpl"]),
        (("tables", "demo-tabular", "datasets", "digits"), {"name": "digit"}),
        (("tables", "demo-tabular", "saflex"), {"betta": 1}),
        (("rows",), {"mine": {"refiner": "saflx"}}),
    ],
    ids=lambda part: ".".join(part) if isinstance(part, tuple) else "",
)
def test_it_objects_to(path, value):
    wrong = copy.deepcopy(content("demo"))
    place = wrong
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert not CHECK.is_valid(wrong)
