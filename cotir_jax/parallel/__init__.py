"""Devices and processes: the mesh and its sharding rules, and several processes as one run."""
