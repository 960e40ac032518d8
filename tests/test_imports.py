"""Who may import whom: parts know only what is below them."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cotir_jax"
PURE = {"objective", "sampling", "image_metrics", "partitioning", "pictures", "errors",
        "metric_writer", "distributed", "throughput", "intervals", "learned_metrics",
        "no_reference_metrics", "split_listing", "tiling", "colour", "quantization", "photo_exif",
        "photo_loaders", "calibration"}  # fmt: skip
MAY_IMPORT = {
    **{name: set() for name in PURE},
    "models": {"models", "partitioning", "sampling"},
    "checkpoints": {"checkpoints", "models", "partitioning"},
    "bench": {"bench", "pictures"},
    "data": {"data", "bench", "pictures", "partitioning"},
    "flops": {"models"},
    "compiled_program": set(),
    "abstract_run": PURE | {"run_config", "train", "text", "text_encoder", "models"},
    "compile_report": PURE
    | {"abstract_run", "compiled_program", "flops", "run_config", "train", "text"}
    | {"models", "data"},
    "train": PURE | {"models"},
    "text_encoder": PURE | {"models", "data"},
    "text": PURE | {"models", "checkpoints", "data", "text_encoder"},
    "run_config": PURE | {"train", "models", "checkpoints", "data"},
    "validation": PURE | {"train", "text", "models", "checkpoints", "data"},
    "training_loop": PURE
    | {"run_config", "train", "text", "models", "checkpoints", "data", "validation", "flops"},
    "photo": {"photo_exif", "photo_loaders"},
    "restore_split": PURE,
    "phrase_bank": PURE | {"bench", "text_encoder"},
    "explain": PURE | {"photo", "models", "text", "bench", "phrase_bank"},
    "explain_split": PURE | {"bench", "explain"},
    "restored": PURE | {"photo", "explain"},
    "restore": PURE | {"photo", "explain", "restored", "models", "checkpoints", "text"},
    "restore_folder": PURE | {"photo", "restore", "restored"},
    "lpips": {"checkpoints"},
    "baselines": {"bench"},
    "scores": PURE | {"lpips"},
    "evaluate": PURE | {"scores"},
    "report_page": PURE | {"scores", "evaluate"},
    "report": PURE | {"scores", "evaluate", "report_page"},
    "verify": PURE | {"train", "models", "checkpoints"},
    "main": PURE
    | {"compile_report", "run_config", "training_loop", "restore", "restore_split", "evaluate"}
    | {"bench", "data"},
    "cli_checkpoints": PURE | {"models", "checkpoints", "data"},
    "cli_bench": PURE | {"bench"},
    "cli_restore": PURE
    | {
        "program_export",
        "demo",
        "restore",
        "restored",
        "restore_folder",
        "restore_split",
        "baselines",
    },
    "program_export": PURE | {"models", "restore"},
    "demo_page": PURE | {"photo", "bench", "restore", "restored"},
    "demo": PURE | {"demo_page", "restore"},
    "cli_explain": PURE | {"photo", "explain_split", "restore"},
    "cli": PURE
    | {"cli_explain", "cli_bench", "cli_checkpoints", "cli_restore", "evaluate", "bench", "verify"}
    | {"scores", "report"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        return
    imports = _imports(path)
    inside = {name.split(".")[1] for name in imports if name.startswith("cotir_jax.")}
    assert inside <= MAY_IMPORT[part], f"{part} may not import {inside - MAY_IMPORT[part]}"
    outside = {name.split(".")[0] for name in imports}
    if part in ("bench", "pictures", "data"):
        assert not outside & {"jax", "flax", "torch", "tensorflow"}
    if part not in ("checkpoints",):
        assert not outside & {"torch", "tensorflow"}
