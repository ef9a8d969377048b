"""Inside a GPU process: the only room that imports torch."""
