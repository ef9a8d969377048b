"""python -m jobs.evaluate: schedules and peers x held-out pairs, against the full run."""
