"""CoTIR-Bench: degrade clean photos, write what was done in words, pack both into shards."""
