"""Text that is safe to print: control characters of a model's or a file's text must not reach the terminal."""

import unicodedata


def printable(text: str) -> str:
    """Control characters (escape sequences begin with one) and lone surrogates as \\x1b; newline and tab stay."""
    return "".join(_shown(character) for character in text.replace("\r\n", "\n"))


def _shown(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs"):
        return character
    return character.encode("unicode_escape").decode("ascii")


def one_line(text: str, width: int = 100) -> str:
    """A heading: printable, on one line, cut to a width."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else line[: width - 3] + "..."
