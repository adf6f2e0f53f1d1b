"""Text that somebody else wrote, for a terminal, a log or a message: shown, never obeyed."""

from unicodedata import category

_JOINERS = "\u200c\u200d"
"""Invisible, and parts of words in some scripts, and of emoji."""

_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories of what moves, hides, turns round or breaks text: controls, formats, lone surrogates, line breaks."""


def visible(text: str) -> str:
    r"""Return a text with each character that a terminal would obey as an escape such as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if category(character) in _OBEYED and character not in _JOINERS:
        return character.encode("unicode_escape").decode()
    return character
