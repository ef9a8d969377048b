"""Which errors say something about the machine, and nothing about the item or the model."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from cluster.store import AlreadyExists, MissingKey, StoreError

_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENODEV, errno.ENOTCONN, errno.EFBIG),
}

# Libraries written in other languages (safetensors, torch, FFmpeg) raise errors of their own, with
# the system's words alone. ENOMEM and EIO are left out: their words are used of other things too.
_WORDS = (
    *(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)),
    # CUDA's errors about the GPU itself; none that a fault of a kernel may cause.
    "uncorrectable ECC error",
    "all CUDA-capable devices are busy or unavailable",
    "CUDA-capable device(s) is/are busy or unavailable",
    "no CUDA-capable device is detected",
)


def is_node_fault(error: BaseException) -> bool:
    """Whether another node may well do what this one could not: its disk is full, say.

    A store that fails is such a case too: where it fails for all nodes, no node works in the end.
    An object with other bytes, or a missing one, is the same from every node. What an error was
    raised from counts as well: libraries wrap the system's errors in their own.
    """
    return any(map(_is_of_the_node, _with_its_causes(error)))


def _is_of_the_node(error: BaseException) -> bool:
    if isinstance(error, StoreError):
        return not isinstance(error, AlreadyExists | MissingKey)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _ERRNOS
    return any(words in str(error) for words in _WORDS)


def _with_its_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was explicitly raised from, and that from."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__
