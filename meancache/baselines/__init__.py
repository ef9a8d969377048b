"""The baselines: other ways to accelerate the same pipelines, each by its own real code.

>>> for baseline in sweep():
...     with baseline.applied(pipe) as overrides:
...         video = pipe(prompt, **{**arguments, **overrides}).frames

What libraries ship is run from there (diffusers; cache-dit where it is installed); what only
papers have is written from them, and its `source` says so. Other packages add theirs by an entry
point of the group `meancache.baselines` (`table.ENTRY_POINTS`). Knows nothing of metrics.
"""

from typing import TYPE_CHECKING, Any

from meancache.baselines.baseline import Baseline, BaselineError

if TYPE_CHECKING:
    from meancache.baselines.table import calibrated, sweep, unusable

__all__ = ["Baseline", "BaselineError", "calibrated", "sweep", "unusable"]


def __getattr__(name: str) -> Any:
    """The baselines themselves, imported with diffusers when they are first asked for."""
    if name not in ("calibrated", "sweep", "unusable"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from meancache.baselines import table

    return getattr(table, name)
