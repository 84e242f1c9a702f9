"""docs/field.md lists the tests of this folder."""

from reports import PAGE, page


def test_the_page_is_what_the_tests_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "make field"
