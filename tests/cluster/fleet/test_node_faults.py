"""An error of the machine is told from one of the item or the model."""

import errno

import pytest

from cluster.fleet.node_faults import is_node_fault
from cluster.store import AlreadyExists, MissingKey, StoreError


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError(errno.EIO, "Input/output error"),
        StoreError("s3://bucket refuses these credentials"),
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
    ],
)
def test_what_is_the_same_on_every_node_is_no_fault_of_one(error):
    assert not is_node_fault(error)
