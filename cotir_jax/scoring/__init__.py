"""Scores of restored pictures, with and without a reference, and reports of them."""
