"""Reads CoTIR-Bench shards: index, order, prompts, tokens, batches."""
