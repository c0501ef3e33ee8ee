"""A cache of large data on a store."""
