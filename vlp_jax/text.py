"""Texts as UTF-8 holds them: lone surrogates, which crash every writer, are replaced where texts and names enter."""

import re
from typing import Any

_SURROGATES = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    r"""Replaces by U+FFFD what has no UTF-8: `\ud83d` without its partner in JSON, other bytes in a file's name."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def encodable_json(value: Any) -> Any:
    """Replaces as `encodable` in all texts of parsed JSON, keys included."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list):
        return [encodable_json(item) for item in value]
    if isinstance(value, dict):
        return {encodable(key): encodable_json(item) for key, item in value.items()}
    return value


def duration(seconds: float) -> str:
    """75.4 -> 1:15, 3725 -> 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def visible(text: str) -> str:
    """The text with its control characters, and bytes of file names that are no UTF-8, spelt as \\n or \\udcff."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
