"""Model folders and training checkpoints."""
