"""Text from outside is shown, and never obeyed."""

import sys
from unicodedata import category

import pytest

from wfe_sql.escaping import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("order-7", "order-7"),
        ("żółć ✓ 😀 注文　一", "żółć ✓ 😀 注文　一"),
        ("[red]x[/] :smile:", "[red]x[/] :smile:"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\x9b2Jb\x7f\0", "a\\x9b2Jb\\x7f\\x00"),
        ("one\r\ntwo\u2028three\u2029four\x85five\t", "one\\r\\ntwo\\u2028three\\u2029four\\x85five\\t"),
        (
            "\u202egnp.exe\u2066\u2069\u200e\u200f\u061c\ufeff",
            "\\u202egnp.exe\\u2066\\u2069\\u200e\\u200f\\u061c\\ufeff",
        ),
        ("👩\u200d👧 क\u200c", "👩\u200d👧 क\u200c"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_nothing_that_is_obeyed_is_left_by_it_or_by_repr() -> None:
    """The library's messages quote ids with repr."""
    obeyed = [chr(code) for code in range(sys.maxunicode + 1) if category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert len(obeyed) > 2_000
    for character in obeyed:
        assert character in "\u200c\u200d" or visible(character).isascii()
        assert repr(character).isascii()
