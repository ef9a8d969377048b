"""Which errors say something about the machine, and nothing about the item or the model."""

from __future__ import annotations

import errno

from cluster.store import AlreadyExists, MissingKey, StoreError

_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENODEV, errno.ENOTCONN, errno.EFBIG),
}


def is_node_fault(error: BaseException) -> bool:
    """Whether another node may well do what this one could not: its disk is full, say.

    A store that fails is such a case too: where it fails for all nodes, no node works in the end.
    An object with other bytes, or a missing one, is the same from every node.
    """
    if isinstance(error, StoreError):
        return not isinstance(error, AlreadyExists | MissingKey)
    return isinstance(error, OSError) and error.errno in _ERRNOS
