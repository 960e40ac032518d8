"""One module for each command of `cotir`."""
