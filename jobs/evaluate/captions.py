"""The embedded model alone: how much of its caption a video shows."""

from __future__ import annotations

import numpy as np

from meancache.tiny.captions import Caption


def caption_score(video: np.ndarray, prompt: str) -> float | None:
    """Share of the caption's facts shown; None where the prompt is no caption of `tiny`."""
    from meancache.tiny.scorer import FACTS, score  # with torch

    try:
        caption = Caption.parse(prompt)
    except ValueError:
        return None
    return score(video, caption).right / len(FACTS)
