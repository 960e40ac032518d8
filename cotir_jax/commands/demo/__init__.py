"""The web page of `cotir demo`."""
