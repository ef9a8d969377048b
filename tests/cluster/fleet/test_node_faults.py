"""An error of the machine is told from one of the item or the model."""

import errno

import pytest

from cluster.fleet.node_faults import is_node_fault
from cluster.store import AlreadyExists, MissingKey, StoreError


def wrapped(cause: Exception) -> Exception:
    """An error of a library, which says nothing of its cause in words."""
    error = RuntimeError("the weights could not be read")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError(errno.EIO, "Input/output error"),
        StoreError("s3://bucket refuses these credentials"),
        # What safetensors and CUDA say, in classes of their own.
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        wrapped(OSError(errno.ENOSPC, "No space left on device")),
        wrapped(wrapped(StoreError("s3://bucket refuses these credentials"))),
    ],
)
def test_another_node_may_do_what_a_sick_one_could_not(error):
    assert is_node_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        AlreadyExists("other bytes are there"),
        MissingKey("there is no such object"),
        ValueError("a bug"),
        MemoryError(),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        wrapped(FileNotFoundError(errno.ENOENT, "No such file or directory")),
    ],
)
def test_what_is_the_same_on_every_node_is_no_fault_of_one(error):
    assert not is_node_fault(error)
