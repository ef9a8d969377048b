"""When two prompts are the same to a reader."""

from __future__ import annotations


def plain(prompt: str) -> str:
    """A prompt without what makes no difference to a reader."""
    return " ".join(prompt.split()).casefold()
