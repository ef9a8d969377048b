"""python -m jobs.solve: a stability graph -> one schedule for each budget."""
