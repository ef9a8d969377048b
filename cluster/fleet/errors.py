"""What a fleet refuses."""

from __future__ import annotations

from meancache.errors import InputError


class FleetError(InputError):
    """The cluster cannot do what was asked for; the message says what it has, or what it lacks."""
