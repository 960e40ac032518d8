"""Compile mode: what it counts, what it says, and the real programs for TPUs that are not here."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from cotir_jax.compiling import abstract_run, stage
from cotir_jax.compiling.hlo import collectives
from cotir_jax.compiling.program import out_of_memory
from cotir_jax.configs import default, tpu_v4, tpu_v5e, tpu_v5p, tpu_v6e
from cotir_jax.models import flops, pipeline, presets
from cotir_jax.models.transformer import Transformer
from cotir_jax.parallel.sharding import RULES, make_mesh
from cotir_jax.training.config import Run, read_stages
from cotir_jax.training.state import init_state
from cotir_jax.training.step import draw_inputs, loss_fn, train_step

ROOT = Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu compiles for TPUs: pip install libtpu",
)
GIB = 2**30


def _products(jaxpr) -> int:
    """FLOPs of all matrix products and convolutions in a jaxpr: every loop as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
        elif name == "cond":
            # The kernel of each platform: products in Pallas' count by the block, and those for CPU
            # compute logits again going backward.
            plain = [branch for branch in params["branches"] if "pallas_call" not in str(branch)]
            total += min(_products(branch.jaxpr) for branch in plain)
        elif name == "while":
            total += _products(params["body_jaxpr"].jaxpr)
        elif name == "scan":
            total += params["length"] * _products(params["jaxpr"].jaxpr)
        else:
            inner = [params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params]
            total += sum(_products(getattr(each, "jaxpr", each)) for each in inner)
    return total


def _run(name, overrides="", devices=None, mesh=None, **train):
    config = default.get_config(name)
    config.model.overrides = overrides
    config.train.update(train)
    config.mesh.update({"data": 1, "fsdp": 1} | (mesh or {}))
    return Run.read(config, devices or jax.devices()[:1])


@pytest.mark.parametrize("name", ["nano", "klein-4b", "kontext-12b"])
def test_flops_of_text_encoders_are_those_of_their_trace(name):
    model = presets.preset(name)
    mesh = make_mesh({}, jax.devices()[:1])
    text = abstract_run.abstract_text(model, mesh, RULES, in_step=True)
    traced = 0
    for encoder, kinds in zip(text, (4, 1), strict=True):
        if encoder is not None:
            shape = (kinds, 1, encoder.tokens)
            ids, mask = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.bool_))
            traced += _products(
                jax.make_jaxpr(encoder.embed)(encoder.weights(mesh), ids, mask).jaxpr
            )
    assert flops.encoding(model, 3) == pytest.approx(3 * traced, rel=0.01)


@pytest.mark.parametrize(
    "name, overrides, patch, trainable",
    [
        ("nano", "", 96, "all"),
        ("nano", "patch=8, in_channels=192, detail_channels=0", 96, "all"),
        ("nano", "prediction='velocity', lora_rank=8, detail_channels=0", 96, "lora_and_adapter"),
        ("klein-4b", "remat='none'", 512, "lora_and_adapter"),
        ("kontext-12b", "remat='none'", 512, "lora_and_adapter"),
    ],
)
def test_flops_are_those_of_the_traced_step(name, overrides, patch, trainable):
    """The trace of the real step, at full size; compared forward alone and with its gradient."""
    run = _run(name, overrides, trainable=trainable)
    arguments = abstract_run.abstract_step(run, 2, patch)

    def forward(frozen, state, batch):
        return loss_fn(state.trainable, frozen, state, draw_inputs(frozen, state, batch))

    parts = flops.training_step(run.model, 2, patch, trainable=trainable)
    counted = sum(work.forward for work in parts.values())
    assert counted == pytest.approx(_products(jax.make_jaxpr(forward)(*arguments).jaxpr), rel=1e-6)
    traced = _products(jax.make_jaxpr(train_step)(*arguments).jaxpr)
    assert flops.total(parts) == pytest.approx(traced, rel=0.01)


def test_adapter_of_text_rows_alone_saves_over_half():
    model = presets.preset("klein-4b")
    ours = flops.training_step(model, 1, 512)["adapter"].total
    release = flops.training_step(model, 1, 512, all_adapter_rows=True)["adapter"].total
    assert ours < release / 2


def test_collectives_of_a_program_are_counted_in_bytes():
    """Eight devices; what each receives is known from the shapes."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def gathered(x):  # [1, 4096] on each, 5 times
        def body(carry, _):
            whole = jax.lax.all_gather(carry, "x", tiled=True)
            return carry + whole.sum(0, keepdims=True), None

        return jax.lax.scan(body, x, None, length=5)[0]

    def summed(x):
        return jax.lax.ppermute(jax.lax.psum(x, "x"), "x", [(i, (i + 1) % 8) for i in range(8)])

    def compiled(function):
        spec = PartitionSpec("x")
        mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return jax.jit(mapped).lower(jnp.zeros((8, 4096), jnp.float32)).compile().as_text()

    one = 4096 * 4
    assert collectives(compiled(gathered)) == {"all-gather": (5, 5 * 7 * one)}
    found = collectives(compiled(summed))
    assert found["all-reduce"] == (1, 2 * 7 / 8 * one)
    assert found["collective-permute"] == (1, one)


TPU_PROGRAM = """HloModule jit_step, is_scheduled=true

%part (p: bf16[4,8]) -> bf16[32,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %g = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={0}
}

%condition (s: (u32[], bf16[4,8])) -> pred[] {
  %s.1 = (u32[], bf16[4,8]{1,0}) parameter(0)
  %other = u32[] constant(3)
  %limit = u32[]{:T(128)} constant(12)
  %i = u32[]{:T(128)} get-tuple-element(%s.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (s: (u32[], bf16[4,8])) -> (u32[], bf16[4,8]) {
  %s.2 = (u32[], bf16[4,8]{1,0}) parameter(0)
  %one = u32[] constant(1)
  %i.2 = u32[]{:T(128)} get-tuple-element(%s.2), index=0
  %i.3 = u32[]{:T(128)} add(%i.2, %one)
  %i.4 = u32[]{:T(128)} add(%one, %i.3)
  %kernel = bf16[4,8] custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block_q": 640
}}, metadata={op_name="attention"}
  %start = bf16[32,8]{1,0} fusion(%x), kind=kCustom, calls=%part
  %again = bf16[32,8]{1,0} fusion(%x), kind=kCustom, calls=%part
  %sent = (bf16[4,8]{1,0}, bf16[4,8]{1,0}) collective-permute-start(%x), channel_id=8, source_target_pairs={{0,8},{8,0}}
  ROOT %next = (u32[], bf16[4,8]) tuple(%i.4, %x)
}

ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {
  ROOT %loop = (u32[], bf16[4,8]) while(%x), condition=%condition, body=%body
}
"""  # noqa: E501


def test_collectives_are_read_as_the_tpu_compiler_writes_them():
    """A gather in two fusions is one; a loop counts to 12 by twos; kernels' braces end none."""
    slices = [device // 8 for device in range(16)]
    assert collectives(TPU_PROGRAM, slices) == {
        "all-gather": (6, 6 * 32 * 8 * 2 * 7 / 8),
        "collective-permute between slices": (6, 6 * 4 * 8 * 2),
    }


@pytest.mark.parametrize(
    ("groups", "crosses"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", False),
        ("{{0,4},{1,5},{2,6},{3,7}}", True),
        ("[2,4]<=[8]", False),
        ("[4,2]<=[2,4]T(1,0)", True),
        ("mesh['data'=2,'fsdp'=4] {'fsdp'}", False),
        ("mesh['data'=2,'fsdp'=4] {'data'}", True),
    ],
)
def test_collectives_between_slices_are_told_apart(groups, crosses):
    """Two slices of four devices, groups as XLA writes them."""
    program = (
        "HloModule jit_step\n\nENTRY %main (p: f32[8]) -> f32[8] {\n  %p = f32[8]{0} parameter(0)\n"
        f"  ROOT %r = f32[8]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, "
        "to_apply=%add\n}\n"
    )
    found = collectives(program, [0, 0, 0, 0, 1, 1, 1, 1])
    size = 2 if crosses else 4
    expected = "all-reduce between slices" if crosses else "all-reduce"
    assert found == {expected: (1, 2 * (size - 1) / size * 32)}


@pytest.mark.slow
def test_frozen_weights_take_no_gradient_and_no_optimizer_state():
    """From the compiled program's sizes: arguments, results, and what lies between them."""
    overrides = (
        "hidden_size=384, num_heads=12, num_double_blocks=4, num_single_blocks=8, lora_rank=8, "
        "text_tokens=8, prediction='velocity', detail_channels=0, remat='full'"
    )

    def sizes(trainable):
        run = _run("nano", overrides, trainable=trainable)
        frozen, state, batch = abstract_run.abstract_step(run, 1, 16)
        step = jax.jit(train_step, donate_argnums=1)
        memory = step.lower(frozen, state, batch).compile().memory_analysis()
        base = abstract_run.sum_bytes(frozen.transformer)
        return memory, base, abstract_run.sum_bytes(state.trainable)

    memory, base, trained = sizes("lora_and_adapter")
    assert base > 4 * trained
    # Weights, two moments; the rest (batch, counters, multipliers) is small.
    assert 0 <= memory.argument_size_in_bytes - base - 3 * trained < 1e6
    assert 0 <= memory.output_size_in_bytes - 3 * trained < 1e5
    # Gradients of what trains, and activations: far from a gradient of the base.
    assert memory.temp_size_in_bytes < base / 2
    memory, base, trained = sizes("all")
    assert base < 1e6
    assert memory.temp_size_in_bytes > 0.8 * trained


def test_large_weights_without_a_rule_are_split_over_fsdp():
    run = _run("klein-4b", devices=jax.devices(), mesh={"fsdp": 8})
    frozen, state, _ = abstract_run.abstract_step(run, 8, 128)
    assert stage.replicated(frozen, state) == []
    b = state.trainable["single_blocks"]["linear1"]["lora_b"].get_value()
    assert b.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    run = _run("klein-4b", devices=jax.devices(), mesh={"data": 8})
    frozen, state, _ = abstract_run.abstract_step(run, 8, 128)
    assert any("linear1" in line for line in stage.replicated(frozen, state))


def test_out_of_memory_is_read_from_the_compilers_message():
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (32.46G) exceeds available HBM (15.75G)."
    )
    assert out_of_memory(message) == int(32.46 * GIB)
    assert out_of_memory("INTERNAL: something else") is None


@pytest.mark.parametrize("module", [tpu_v4, tpu_v5e, tpu_v5p, tpu_v6e])
@pytest.mark.parametrize("model", ["klein-4b", "klein-9b", "kontext-12b", "nano"])
def test_configs_of_topologies_divide_their_batches(module, model):
    config = module.get_config(model)
    for each in read_stages(config):
        assert each.batch_size % 16 == 0


def _compile(*flags):
    return subprocess.run(
        [sys.executable, "-m", "cotir_jax.main", "--mode=compile", *flags],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""},
    )  # fmt: skip


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "v5e:3x7"])
@needs_libtpu
def test_an_unknown_topology_is_one_line(topology):
    done = _compile("--config=configs/tpu_v5e.py:nano", f"--topology={topology}")
    assert done.returncode == 1 and not done.stdout
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and topology in line and "Traceback" not in done.stderr


def test_compiling_needs_a_topology():
    done = _compile("--config=configs/tpu_v5e.py:nano")
    assert done.returncode == 1 and "--topology" in done.stderr.strip().splitlines()[-1]


@needs_libtpu
@pytest.mark.slow
def test_nano_on_four_chips_of_v5e():
    done = _compile(
        "--config=configs/tpu_v5e.py:nano", "--topology=v5e:2x2",
        "--config.train.stages=((10, 32, 8),)", "--config.train.steps=10",
        "--optimization_level=O1",  # compiles sooner
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["fits"] is True and result["devices"] == 4 and result["topology"] == "v5e:2x2"
    assert result["hbm_per_device"] == int(15.75 * GIB)
    sizes = result["bytes_per_device"]
    assert sizes["arguments"] > 0 and 0 < sizes["temporaries"] < sizes["total"]
    # The data axis alone: every device has all weights, and one sum of their gradients is moved.
    gradients = result["stages"][0]["trainable_bytes"]
    assert result["collective_bytes"]["all-reduce"] == pytest.approx(2 * 0.75 * gradients, rel=0.3)
    assert result["flops"] > 1e9 and result["compile_seconds"] > 0


@needs_libtpu
@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_reported():
    done = _compile(
        "--config=configs/tpu_v5e.py:nano", "--topology=v5e:2x2",
        "--config.train.stages=((10, 512, 1024),)", "--config.train.steps=10",
    )  # fmt: skip
    assert done.returncode == 1
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["fits"] is False
    assert "remat" in result["stages"][0]["advice"]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.timeout(1500)  # two cores and another test beside it
def test_klein_on_sixteen_chips_of_v5e():
    done = _compile(
        "--config=configs/tpu_v5e.py:klein-4b", "--topology=v5e:4x4", "--stage=4",
        "--optimization_level=O1",  # compiles sooner
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    stage, sizes = result["stages"][0], result["bytes_per_device"]
    assert sizes["total"] < 0.9 * result["hbm_per_device"]
    assert stage["warnings"] == []
    # 3.9 billion frozen weights in 16 bits, the float32 autoencoder and Qwen3-4B; 1.1 billion that
    # train.
    parts = ("frozen_bytes", "trainable_bytes", "optimizer_bytes", "text_encoder_bytes")
    held = sum(stage[part] for part in parts)
    assert sizes["arguments"] - held < 0.2 * GIB
    assert stage["optimizer_bytes"] == pytest.approx(2 * stage["trainable_bytes"], rel=1e-3)
    # The small ones, as norms, are whole on every device.
    assert 1.105e9 * 4 <= 16 * stage["trainable_bytes"] < 1.02 * 1.105e9 * 4


def test_abstract_weights_are_those_of_a_run():
    """The same shapes as a model that is really built."""
    run = _run("nano")
    frozen, state, _ = abstract_run.abstract_step(run, 8, 32)
    built = init_state(
        Transformer(run.model, rngs=nnx.Rngs(0)),
        pipeline.make_autoencoder(run.model, rngs=nnx.Rngs(0)),
        run.settings,
        0,
    )
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (frozen, state))
    assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), built)
