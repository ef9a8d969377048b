"""The peers: other ways to accelerate the same pipelines, each by its own real code.

>>> for peer in sweep():
...     with peer.applied(pipe) as overrides:
...         video = pipe(prompt, **{**arguments, **overrides}).frames

What libraries ship is run from there (diffusers; cache-dit where it is installed); what only
papers have is written from them, and its `source` says so. Knows nothing of metrics or tables.
"""

from meancache.peers.contenders import calibrated, sweep, unusable
from meancache.peers.peer import Peer, PeerError

__all__ = ["Peer", "PeerError", "calibrated", "sweep", "unusable"]
