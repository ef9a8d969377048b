"""Schedules and other methods against the full run, on the same noise."""
