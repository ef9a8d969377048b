"""python -m jobs.calibrate: full trajectories -> a calibration, and the graph of one setting"""
