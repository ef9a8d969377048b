"""Machines and bytes: gangs of ranks, storage, manifests, video files.

Of the method this package knows nothing beyond "a Schedule"; `jobs` is built on it, never the other
way round.
"""
