"""Text encoders as modules: CLIP, T5, Qwen3 and MiniLM."""
