"""Configs of runs. `--config=NAME` names one of these files, `--config=PATH` any other file.

They are the package `cotir_jax.configs`, so that they can import each other from anywhere.
"""
