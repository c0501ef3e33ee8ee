"""What is in memory, and what leaves it."""
