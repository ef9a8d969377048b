"""A night of `refresh`: its prompts, what it measures, whether the new schedule is better."""
