"""python -m jobs.replay ROOT ITEM_ID: renders a row again and says whether it is the same."""
