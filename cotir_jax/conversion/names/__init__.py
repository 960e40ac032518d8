"""Name tables: each published tensor's name and its place in our models."""
