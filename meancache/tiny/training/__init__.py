"""Makes the embedded model and measures it."""
