"""What goes wrong in one round of chaos, drawn from a seed: when, where and how often."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.faults import Fault, Request

# Done to processes, once so many videos are delivered.
PROCESS_BLOWS = ("rank killed", "rank stopped", "leader killed", "driver killed", "raylet killed")
SECOND_DRIVER = "second driver"

# The steps of the protocol: which request, whose sender is killed before or after it is answered.
STEPS = {
    "job.json": ("PUT", r"job(\.r\d+)?\.json"),
    "plan read": ("LIST", r"manifest/parts/|receipts/\d+/"),
    "video": ("PUT", r"videos/.*"),
    "receipt": ("PUT", r"receipts/.*"),
    "failure noted": ("PUT", r"attempts/.*"),
    "receipts read": ("GET", r"receipts/.*"),
    "failures": ("PUT", r"failures/.*"),
    "part": ("PUT", r"manifest/parts/.*"),
    "_SUCCESS": ("PUT", r"manifest/_SUCCESS(\.r\d+)?"),
}

# Done to any request, with these weights; a stall costs the client its whole patience.
STORE_FAULTS = {
    "500": 4, "503": 4, "reset": 4, "lost ack": 4,
    "truncate": 3, "corrupt down": 3, "corrupt up": 4,
}  # fmt: skip
# A client that meets faults only would rightly give up.
FAULTY_SHARE = 0.15


@dataclass(frozen=True)
class Blow:
    """One thing done to a process: `kind` once `after` videos are delivered."""

    kind: str
    after: int


@dataclass(frozen=True)
class Trap:
    """A protocol step at which whoever takes it is killed, the first time that it is taken."""

    step: str
    kind: str  # 'kill before' or 'kill after'

    def catches(self, request: Request, prefix: str) -> bool:
        """Whether the request is this step."""
        method, pattern = STEPS[self.step]
        return kind_of(request) == method and bool(
            re.fullmatch(pattern, where(request).removeprefix(f"{prefix}/"))
        )


def kind_of(request: Request) -> str:
    """The request's method, or 'LIST'."""
    return "LIST" if request.method == "GET" and not request.key else request.method


def where(request: Request) -> str:
    """The key that a request is about, or the prefix that it lists."""
    if request.key:
        return request.key
    match = re.search(r"(?:^|&)prefix=([^&]*)", request.query)
    return match[1].replace("%2F", "/") if match else ""


def blows(draw: random.Random, items: int, kinds: dict[str, int]) -> list[Blow]:
    """So many blows of each kind, each after a number of videos of its own, in their order."""
    chosen = [kind for kind, number in kinds.items() for _ in range(number)]
    draw.shuffle(chosen)
    # Not before the first video: until then no gang knows how long to wait for a stopped rank.
    times = sorted(draw.randint(1, max(1, items - 3)) for _ in chosen)
    return [Blow(kind, after) for kind, after in zip(chosen, times, strict=True)]


def all_traps() -> Iterator[Trap]:
    """Every step of the protocol, killed before and after."""
    for step in STEPS:
        for kind in ("kill before", "kill after"):
            yield Trap(step, kind)


def store_fault(draw: random.Random, request: Request) -> Fault | None:
    """A fault for this request, or (mostly) none; each kind only where it can be done."""
    if draw.random() >= FAULTY_SHARE:
        return None
    (kind,) = draw.choices(list(STORE_FAULTS), list(STORE_FAULTS.values()))
    # A letter changed in a list stays a list: S3 sends no checksum with it.
    if kind in ("truncate", "corrupt down") and (request.method != "GET" or not request.key):
        return None
    if kind == "corrupt up" and request.method != "PUT":
        return None
    return Fault(kind, at=draw.random())
