"""Texts to embeddings: tokenizers, encoders with a cache, prompts."""
