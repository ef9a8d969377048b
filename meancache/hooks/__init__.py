"""What sits on a pipeline while it follows a schedule."""
