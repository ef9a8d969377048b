"""python -m jobs.benchmark: how fast this machine renders, and what skipping steps saves."""
