"""Escapes text from outside for a terminal, a log or a message, so that it is shown and never obeyed."""

from unicodedata import category

_JOINERS = "\u200c\u200d"
"""Invisible, but parts of words in some scripts, and of emoji."""

_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories that move, hide, reverse or break text: controls, formats, lone surrogates, line breaks."""


def visible(text: str) -> str:
    r"""Return a text in which characters that a terminal would obey are escapes such as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if category(character) in _OBEYED and character not in _JOINERS:
        return character.encode("unicode_escape").decode()
    return character
