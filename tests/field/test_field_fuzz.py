"""Suites with mutated keys, types and values: every answer is a plan or one clean error."""

from __future__ import annotations

import copy
import datetime
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reports import BY_HAND, report

from benchmarks import suite as suites
from benchmarks.errors import BenchmarkError

JUNK = [
    None, True, False, -1, 0, 2, 10**30, -0.5, 1.5, 1e308, float("nan"), float("inf"), "", "x", "two", "1e-3",
    "../x", "ü", "qsar", "none", "saflex", "mlp", b"\x00", datetime.date(2024, 1, 1),
    [], [[]], [None], ["none"], [1, "x"], {}, {"a": 1}, {1: 2}, {"name": "qsar"}, {"settings": {"beta": -1}},
]  # fmt: skip
QUIET = {
    "deadline": None,
    "derandomize": True,
    "database": None,  # nothing is written into the checkout
    "suppress_health_check": list(HealthCheck),
}


@cache
def tables() -> list[dict[str, Any]]:
    """The shipped suites' tables, each as a suite of its own with one seed."""
    found = []
    for name in ("demo", "cpu", "paper"):
        whole = yaml.safe_load((suites.SUITES / f"{name}.yaml").read_text(encoding="utf-8"))
        found += [
            # No object twice: a mutation is of one place.
            yaml.safe_load(yaml.safe_dump(whole | {"seeds": 1, "tables": {key: table}}))
            for key, table in whole["tables"].items()
        ]
    return found


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every container below a node with each of its keys."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    here = [(node, key) for key, _ in pairs] if isinstance(node, dict | list) else []
    below = [child for parent, key in here for child in places_of(parent[key])]
    return here + below


def places_of(child: Any) -> list[tuple[Any, Any]]:
    return places(child) if isinstance(child, dict | list) else []


@st.composite
def mutated(draw) -> dict[str, Any]:
    """A table with one to three things changed in it."""
    content = copy.deepcopy(draw(st.sampled_from(tables())))
    for _ in range(draw(st.integers(1, 3))):
        found = places(content)
        if not found:
            break
        parent, key = found[draw(st.integers(0, len(found) - 1))]
        match draw(st.sampled_from(["key", "value", "value", "text", "gone", "wrapped"])):
            case "key" if isinstance(parent, dict):
                typo = draw(st.sampled_from([f"{key}s", str(key)[1:], str(key).upper(), 7, None]))
                parent[typo] = parent.pop(key)
            case "gone":
                del parent[key]
            case "wrapped":
                parent[key] = draw(st.sampled_from([[parent[key]], {"a": parent[key]}]))
            case "text":
                parent[key] = draw(st.text(max_size=8))
            case _:
                parent[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
    return content


def plan_or_one_clean_error(content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
        said, specs = "", []
        try:
            specs = suites.plan(suites.load(path))
        except BenchmarkError as error:
            said = str(error)
    assert "Traceback" not in said
    assert specs == [] or not said
    assert all(spec.key for spec in specs)


@report(
    BY_HAND,
    "suites with mutated keys, types and values (500 of the three suites' tables)",
    "a plan or one clean error",
)
@pytest.mark.slow
@settings(max_examples=500, **QUIET)
@given(mutated())
def test_a_mutated_suite_is_a_plan_or_one_clean_error(content):
    plan_or_one_clean_error(content)


@settings(max_examples=40, **QUIET)
@given(mutated())
def test_some_of_them_in_every_run(content):
    plan_or_one_clean_error(content)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"suite: [",
        b"\xff\xfe\x00",
        b"suite: caf\xe9\ntables: {}",
        b"- a\n- b\n",
        b"just words",
        b"? {a: b}\n: c\n",
        b"suite: x\nwhen: 2024-13-45\n",
        b"a: &a [*a]\n",
        b"!!python/object:os.system {}\n",
        b"[" * 3000,
        "\ufeffsuite: x\n".encode(),
    ],
)
def test_a_file_that_is_no_suite_is_one_clean_error(tmp_path, text):
    (tmp_path / "s.yaml").write_bytes(text)
    with pytest.raises(BenchmarkError, match=r"s\.yaml"):
        suites.load(tmp_path / "s.yaml")
