"""Who may import whom: a room knows only what is below it, and rooms of one floor do not mix."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cotir_jax"

# A room (a file or package at the top level) -> what it may import of the others.
MAY_IMPORT = {
    "files": set(),
    "parallel": {"files"},
    "images": {"files"},
    "models": {"parallel"},
    "bench": {"files", "images.pictures"},
    "text": {"files", "models", "parallel"},
    "data": {"files", "bench", "images.pictures", "text.tokenizer"},
    "checkpoints": {"files", "parallel", "models", "text"},
    "conversion": {"files", "models", "text", "checkpoints"},
    "training": {
        "files", "parallel", "models", "text", "data", "checkpoints", "images.pictures",
    },
    "explaining": {"files", "parallel", "models", "text", "images", "bench", "checkpoints"},
    "restoring": {
        "files", "parallel", "models", "text", "images", "bench.listing", "checkpoints",
        "explaining",
    },
    "compiling": {"files", "parallel", "models", "text", "data", "training"},
    "scoring": {"files", "images.pictures", "bench", "conversion.torch_files"},
    "commands": {
        "files", "parallel", "models", "text", "images", "bench", "data", "checkpoints",
        "conversion", "training", "explaining", "restoring", "compiling", "scoring",
    },
    "main": {"files", "parallel", "commands", "compiling"},
    "cli": {"files", "parallel", "commands", "__version__"},
    "__main__": {"cli"},
    # The public names, each imported when it is first used.
    "__init__": {
        "bench", "checkpoints", "data", "models", "scoring", "training", "explaining.explainer",
        "images.photo", "restoring.restorer", "restoring.result",
    },
}  # fmt: skip

JAX = {"jax", "flax", "optax", "orbax", "clu"}
# A room or module -> libraries that it must not import.
WITHOUT = {
    "bench": JAX | {"pyvips"},
    "data": JAX,
    "text.tokenizer": JAX,
    "images.pictures": JAX | {"pyvips"},
    "files": JAX,
    "cli": JAX,
}
# A library -> the only rooms or modules that import it.
ONLY_IN = {
    "torch": {"conversion"},
    "tensorflow": set(),
    "pyiqa": {"scoring.learned"},
    "gradio": {"commands.demo"},
}
# The link `configs` leads out of the package; its rule is a test of its own.
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "configs"
)


def _name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _imports(path):
    """Dotted names of all modules, and names in modules, that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _within(name, places):
    return any(name == place or name.startswith(f"{place}.") for place in places)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_follow_the_rules(path):
    name = _name(path)
    room = name.split(".")[0]
    imports = _imports(path)
    for full in sorted(imports):
        library, _, inside = full.partition(".")
        if library == "cotir_jax" and not _within(inside, {room}):
            assert _within(inside, MAY_IMPORT[room]), f"{name} may not import {full}"
        if library in ONLY_IN:
            assert _within(name, ONLY_IN[library]), f"{name} may not import {library}"
        for part, libraries in WITHOUT.items():
            if _within(name, {part}):
                assert library not in libraries, f"{name} may not import {library}"


def test_configs_import_only_each_other():
    """`configs/` is also the package `cotir_jax.configs`, by a link."""
    for path in sorted((ROOT / "configs").glob("*.py")):
        for full in sorted(_imports(path)):
            assert _within(full, {"cotir_jax.configs", "ml_collections"}), path.name


def test_rooms_and_files_are_small():
    rooms = {path.relative_to(PACKAGE).parts[0] for path in MODULES}
    assert len(rooms - {"__init__.py", "__main__.py"}) <= 20, sorted(rooms)
    long = {_name(path): count for path in MODULES if (count := _lines(path)) > 400}
    assert not long
    assert sum(map(_lines, MODULES)) < 21_500


def _lines(path):
    return len(path.read_text().splitlines())
