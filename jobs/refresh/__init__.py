"""python -m jobs.refresh: calibrate, solve, compare on held-out prompts, promote what is better."""
