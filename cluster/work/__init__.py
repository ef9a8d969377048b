"""What is to be done: the prompts and the plan."""
