"""docs/method.md names a test for each claim: the tests exist, and every fact has one."""

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "method.md").read_text()


def names_in(name: str) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", (HERE / name).read_text(), re.MULTILINE))


def test_every_test_named_on_the_page_exists():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 12
    for file, test in named:
        assert test in names_in(file), f"{file}::{test}"


def test_the_errata_table_covers_the_eight_facts():
    facts = names_in("test_eight_facts.py")
    rows = dict(re.findall(r"^\| (\d) \|.*\| (`test_.*`) \|$", PAGE, re.MULTILINE))
    assert sorted(rows) == [str(i) for i in range(1, 9)]
    for number, cell in rows.items():
        for test in re.findall(r"`(test_\w+)`", cell):
            assert test in facts
            assert test.startswith(f"test_{number}_")


def test_every_public_name_is_on_the_page_or_in_its_table():
    import saflex

    for name in ("Batch", "validation_gradient", "gradient_products", "soft_labels"):
        assert name in saflex.__all__
        assert f"`{name}" in PAGE or f"saflex.{name}" in PAGE
