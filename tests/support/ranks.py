"""What test gangs run on their ranks: small functions that child processes can import."""

from __future__ import annotations

import importlib
import mmap
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:  # every rank imports this file: most need none of it
    import torch

    from cluster.ranks import RenderRequest
    from cluster.ranks.renderer import Renderer


def build(rank: int, world_size: int, init_method: str) -> tuple[int, int]:
    """A rank that knows who it is."""
    return rank, world_size


def build_fails(rank: int, world_size: int, init_method: str) -> None:
    """A rank that cannot start, if it is the last one."""
    if rank == world_size - 1:
        raise RuntimeError("no weights here")


class Compiling:
    """Builds ranks whose first task may take a minute longer."""

    warm_up_s = 60.0

    def __call__(self, rank: int, world_size: int, init_method: str) -> tuple[int, int]:
        return build(rank, world_size, init_method)


def who(built: tuple[int, int], payload: object) -> tuple[tuple[int, int], object, int]:
    """The rank's identity, what it was given, and its process."""
    return built, payload, os.getpid()


def forebears(built: tuple[int, int], payload: object) -> tuple[int, int]:
    """The process that the rank was forked from, and the one that this was forked from."""
    parent = os.getppid()
    return parent, psutil.Process(parent).ppid()


def environment(built: tuple[int, int], name: str) -> str | None:
    """A variable of the rank's environment; its value is also said, to standard error."""
    print(f"{name} is {os.environ.get(name)}", file=sys.stderr, flush=True)
    return os.environ.get(name)


def modules_with(built: tuple[int, int], names: tuple[str, ...]) -> set[str]:
    """All modules that the rank has once it has imported these."""
    for name in names:
        importlib.import_module(name)
    return set(sys.modules)


def read_a_mapped_file_that_is_gone(built: tuple[int, int], payload: object) -> int:
    """Gets SIGBUS, as by a write to a mapped file on a disk that is full."""
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        file.truncate(0)
        return mapped[0]


def sleep(built: tuple[int, int], seconds: float) -> None:
    """Is at work for so long."""
    time.sleep(seconds)


def latents(renderer: Renderer, request: RenderRequest) -> torch.Tensor:
    """What is drawn before it is decoded and rounded, float32."""
    item = request.item
    return renderer.latents(item.prompt, item.seed, item.call)


def touch(built: tuple[int, int], folder: Path) -> None:
    """Leaves a file that says this rank was here."""
    (folder / f"rank-{built[0]}").touch()


def fail_on_rank_1(built: tuple[int, int], payload: object) -> int:
    """Raises on rank 1 alone."""
    if built[0] == 1:
        raise ValueError("latents are wrong")
    return 0


def stop_on_rank_1(built: tuple[int, int], payload: object) -> int:
    """Rank 1 stops, as a rank in a collective that never ends."""
    if built[0] == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return 0


def stop_and_answer_nothing(built: tuple[int, int], payload: object) -> int:
    """Stops before it answers."""
    os.kill(os.getpid(), signal.SIGSTOP)
    return 0


class _StopsWhilePickled:
    """Larger than a pipe holds; whoever writes it is stopped a moment later, in the middle."""

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGSTOP)).start()
        return bytes, (b"x" * 500_000_000,)


def stop_within_its_answer(built: tuple[int, int], payload: object) -> object:
    """An answer that breaks off in the pipe."""
    return _StopsWhilePickled()


def die_on_rank_1(built: tuple[int, int], payload: object) -> int:
    """Rank 1 is killed, as by the kernel when memory runs out."""
    if built[0] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


def fail_beside_a_death(built: tuple[int, int], payload: object) -> None:
    """Rank 1 is killed, and the others notice that it is gone."""
    die_on_rank_1(built, payload)
    raise RuntimeError("connection closed by the other end")


def fail_until_third_try(built: tuple[int, int], folder: Path) -> str:
    """Dies twice, then succeeds; counts in files because every try has fresh processes."""
    if built[0] == 0:
        tries = len(list(folder.iterdir()))
        (folder / str(tries)).touch()
        if tries < 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return "third time lucky"


def open_fifo(built: tuple[int, int], end: tuple[Path, str]) -> str:
    """Opens an end of a fifo, which waits until the other is opened too."""
    path, mode = end
    with path.open(mode):
        return mode
