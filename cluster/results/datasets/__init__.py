"""Finished renders as datasets: their rows, conditions on them, layouts that loaders read."""
