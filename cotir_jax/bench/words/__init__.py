"""The words of CoTIR-Bench: prompts, and the thoughts scene, degradation and plan."""
