"""python -m jobs.demo: the whole story on the embedded model, on two CPU cores, in minutes."""
