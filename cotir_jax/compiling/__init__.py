"""Compiles the training step for accelerators that need not be there; reads what it costs."""
