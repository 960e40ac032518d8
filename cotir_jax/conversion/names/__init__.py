"""Name tables: each published tensor's name and its place in our models."""

import tomllib
from pathlib import Path

# The content of `tables.toml`, which explains it.
TABLES = tomllib.loads((Path(__file__).parent / "tables.toml").read_text(encoding="utf-8"))
