"""python -m jobs.evaluate: schedules and baselines x held-out pairs, against the full run."""
