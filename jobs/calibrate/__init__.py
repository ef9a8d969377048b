"""python -m jobs.calibrate: full trajectories -> stability statistics -> ROOT/graph/*.parquet"""
