"""Names in the release's `lora.pt` and `cot_adapter.pt`."""

from cotir_jax.conversion.name_tables import Row, Table, one, per_layer
from cotir_jax.conversion.names import TABLES
from cotir_jax.conversion.names.transformer import single_rows
from cotir_jax.models.presets import CoTIRConfig

_LORA = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "lora_bias": "lora_B.bias"}
# The release says sharpness for scene and planning for plan.
_THOUGHTS = {"scene": "sharpness", "degradation": "degradation", "plan": "planning"}


def lora(config: CoTIRConfig) -> Table:
    """Names of `lora.pt`: every linear of the single blocks and of the final layer."""
    linears = ["linear1", "linear2"] + ["modulation.lin"] * (config.family == "flux1")
    rows: list[Row] = []
    for ours, theirs in _LORA.items():
        for linear in linears:
            rows += single_rows(config, f"{linear}.{ours}", f"single_blocks.{{}}.{linear}.{theirs}")
        rows.append(one(f"final_layer.linear.{ours}", f"final_layer.linear.{theirs}"))
        rows.append(
            one(f"final_layer.modulation.lin.{ours}", f"final_layer.adaLN_modulation.1.{theirs}")
        )
    return Table(rows)


def cot_adapter(config: CoTIRConfig) -> Table:
    """Names of `cot_adapter.pt`, the same for both families."""
    if not config.adapter_depth:
        return Table([])
    rows = [
        per_layer(
            f"cot_adapter.blocks.{ours}", config.adapter_depth, f"cot_adapter.decoder.{{}}.{theirs}"
        )
        for ours, theirs in TABLES["adapter"].items()
    ]
    for ours, theirs in _THOUGHTS.items():
        rows.append(one(f"cot_adapter.scale_{ours}", f"cot_adapter.scale_{theirs}"))
        linears = {
            ours: f"{theirs}_layer",
            f"final_{ours}.linear": f"final_{theirs}_layer.linear",
            f"final_{ours}.modulation.lin": f"final_{theirs}_layer.adaLN_modulation.1",
        }
        for path, name in linears.items():
            rows.append(one(f"cot_adapter.{path}.kernel", f"cot_adapter.{name}.weight"))
            rows.append(one(f"cot_adapter.{path}.bias", f"cot_adapter.{name}.bias"))
    return Table(rows)
