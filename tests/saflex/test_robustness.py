"""docs/robustness.md says what comes out when each of its situations is tried."""

import pytest
from situations import PAGE, all_situations

SITUATIONS = all_situations()
LINES = PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("each", SITUATIONS, ids=lambda each: f"{each.part}: {each.name}")
def test_it_comes_out_as_the_page_says(each):
    assert each.row() in LINES, "if that is meant: make robustness"


def test_the_page_has_these_situations_and_no_others():
    tried = [line.split(" | ")[0].removeprefix("| ") for line in LINES if line.startswith("| ")]
    assert [name for name in tried if name != "tried"] == [each.name for each in SITUATIONS]
    assert len(SITUATIONS) >= 80
    refusals = sum("| refused: " in line for line in LINES)
    head = f"{len(SITUATIONS)} situations: {len(SITUATIONS) - refusals} right, {refusals} refused"
    assert any(line.startswith(head) for line in LINES)
