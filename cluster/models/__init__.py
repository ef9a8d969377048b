"""What is known of a model before it is loaded: its pipeline, its sizes, whether a GPU holds it."""
