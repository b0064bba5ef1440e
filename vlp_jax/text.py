"""Text as UTF-8 can hold it."""

import re

_SURROGATES = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """Returns `text` with U+FFFD for each lone surrogate: JSON's "\\ud83d", or a file name that is not UTF-8."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)
