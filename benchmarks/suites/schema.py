"""JSON schema of a suite file, for editors to check it by: `python -m benchmarks.suites.schema`.

Written from the models that `benchmarks.suite` checks with, and the names that are registered; a test says
when ``schema.json`` is no longer what this makes. It cannot say which rows a table may name: that and
everything across lines is said by the commands themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from benchmarks import registry
from benchmarks.suite import Suite
from saflex.settings import SaflexSettings

PLACE = Path(__file__).with_name("schema.json")
FAMILY_OF = {"datasets": "datasets", "backbones": "models", "upstreams": "upstream"}


def schema() -> dict[str, Any]:
    """Schema of `Suite`, with what only its validators know: short forms and registered names."""
    made = Suite.model_json_schema()
    parts = made["$defs"]
    table, row, change = (parts[name]["properties"] for name in ("TableSpec", "Row", "Override"))
    row["refiner"] = _one_of("refiners", "A registered refiner")
    row["upstream"] = _one_of("upstream", "Instead of the table's upstream", none=True)
    for field, family in FAMILY_OF.items():
        table[field] = _entries(family, registry.SINGULAR[family])
    table["saflex"] = {
        "type": "object",
        "description": "Settings for every SAFLEX row",
        "properties": TypeAdapter(SaflexSettings).json_schema()["properties"],
        "additionalProperties": False,
    }
    change["recipe"] = {
        "type": "object",
        "properties": parts["Recipe"]["properties"],
        "additionalProperties": False,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _entries(family: str, what: str) -> dict[str, Any]:
    """A list of registered names; or names of one's own, each with a registered `name`, or null."""
    own = {
        "allOf": [{"$ref": "#/$defs/Entry"}],
        "properties": {"name": _one_of(family, f"The registered {what}", none=True)},
    }
    entry = {"anyOf": [own, {"type": "null"}]}
    short = {"type": "array", "items": _one_of(family, f"A registered {what}")}
    full = {
        "type": "object",
        "properties": dict.fromkeys(sorted(registry.modules(family)), entry),
        "additionalProperties": entry,
    }
    return {"anyOf": [short, full]}


def _one_of(family: str, description: str, *, none: bool = False) -> dict[str, Any]:
    names = sorted(registry.modules(family))
    return {"enum": names + [None] * none, "description": description}


def text() -> str:
    """The file's content."""
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    PLACE.write_text(text(), encoding="utf-8")
