"""Published PyTorch checkpoints to model folders and back; only this package reads torch files."""
