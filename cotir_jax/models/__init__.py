"""Models as Flax NNX modules and pure functions: transformers, autoencoders, text encoders."""
