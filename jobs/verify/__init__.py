"""python -m jobs.verify ROOT: re-hashes everything that a render root's manifest names."""
