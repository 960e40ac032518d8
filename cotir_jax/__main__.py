"""`python -m cotir_jax` is `cotir`."""

from cotir_jax.cli import main

main()
