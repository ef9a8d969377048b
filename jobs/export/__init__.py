"""python -m jobs.export ROOT: a finished render as a VideoFolder, WebDataset or flat Parquet."""
