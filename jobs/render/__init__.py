"""python -m jobs.render: prompts + a schedule -> mp4s and a Parquet manifest, each row once."""
