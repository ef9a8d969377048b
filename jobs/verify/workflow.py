"""Re-hashes everything that a render root's manifest names."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.results import garbage, manifest, verification
from cluster.store import Store, open_store
from cluster.work import plan
from jobs._shared.progress import counted, progress
from jobs._shared.roots import RefusedError, refusing


@dataclass(frozen=True)
class Config:
    """What is read, and what is done about it.

    Attributes:
        root: of a finished render.
        share: of the receipts and videos that are read, chosen at random.
        collect: delete videos that nothing names, too.
        grace_h: hours that such a video must be old.
    """

    root: str
    share: float = 1.0
    collect: bool = False
    grace_h: float = 24.0


@dataclass(frozen=True)
class Outcome:
    """How many objects were read, and how many of them are missing or damaged."""

    checked: int
    problems: int


def run(config: Config) -> Outcome:
    """Reads every object; names those that are missing or damaged."""
    store = _open(config.root)
    checked = problems = 0
    steps = verification.expected_steps(store)
    for findings in progress(verification.verify(store, config.share), steps, "files"):
        checked += len(findings)
        for uri, problem in findings:
            if problem is not None:
                problems += 1
                print(f"{uri} {problem}")
    print(f"{counted(checked, 'object')} checked, {problems} of them missing or damaged")
    if config.collect and problems:
        print("nothing is removed before what is missing or damaged has been seen to")
    elif config.collect:
        freed = removed = 0
        for _, size in garbage.collect(store, config.grace_h * 3600):
            removed, freed = removed + 1, freed + size
        print(f"{counted(removed, 'video')} that nothing names removed, {freed / 1e6:.1f} MB")
        proofs = sum(1 for _ in garbage.collect_proofs(store, config.grace_h * 3600))
        if proofs:
            print(f"{counted(proofs, 'proof')} of the shared output removed, of killed drivers")
    return Outcome(checked, problems)


@refusing()
def _open(root: str) -> Store:
    """The root of a render. Raises RefusedError where there is none."""
    store = open_store(root)
    if not store.exists(manifest.SUCCESS_KEY) and not store.exists(plan.SPEC_KEY):
        raise RefusedError(
            f"there is no render at {root}: neither {plan.SPEC_KEY} nor {manifest.SUCCESS_KEY} is "
            "in it; give the --output of a jobs.render"
        )
    return store
