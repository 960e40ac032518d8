"""Metrics are read one step late, averaged and shown; a state that is not finite is not saved."""

import json
import logging
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from cotir_jax.configs import nano
from cotir_jax.data.batches import CorruptCounter, Stage
from cotir_jax.training import hooks
from cotir_jax.training.config import Run
from cotir_jax.training.metric_files import MetricFiles
from cotir_jax.training.throughput import Throughput

STAGE = Stage(0, 6, 128, 8)


@pytest.fixture(name="metrics")
def metrics_fixture(tmp_path, one_device):
    config = nano.get_config()
    config.log.every = 2
    config.checkpoint.every = 4
    config.train.update({"steps": 6, "stages": ((6, 128, 8),)})
    run = Run.read(config)
    speed = Throughput(list(one_device.devices.flat))
    files = MetricFiles(tmp_path, enabled=True)
    progress = hooks.Progress(0, 6, 2)
    yield hooks.StepMetrics(run, files, speed, progress), run, speed
    for each in (files, speed, progress):
        each.close()


def _finish(hook, speed, step, loss):
    finished = hooks.Finished(step, STAGE, None, {"loss": jnp.float32(loss)})
    speed.dispatched(finished.metrics)
    hook(finished)
    return finished


def _lines(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_metrics_are_means_since_the_last_line_and_one_step_late(metrics, tmp_path, caplog):
    caplog.set_level(logging.INFO, "cotir_jax")
    hook, _, speed = metrics
    assert not (tmp_path / "events").exists()
    for step, loss in enumerate((1.0, 2.0, 4.0, 8.0, 16.0), 1):
        _finish(hook, speed, step, loss)
        assert [line["step"] for line in _lines(tmp_path)] == [2, 4][: (step - 1) // 2]
    _finish(hook, speed, 6, 32.0)  # the last of its stage: read at once
    assert [(line["step"], line["loss"]) for line in _lines(tmp_path)] == [
        (2, 1.5),
        (4, 6),
        (6, 24),
    ]
    assert hook.last["loss"] == 32 and hook.last["samples_per_second"] > 0
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "step 2 of 6", "step 4 of 6", "step 6 of 6",
    ]  # fmt: skip
    assert list((tmp_path / "events").glob("*tfevents*"))


def test_a_state_that_is_not_finite_is_not_saved(metrics):
    hook, run, speed = metrics
    saved = []
    store = SimpleNamespace(save=lambda *given: saved.append(given))
    stop = SimpleNamespace(at=lambda step: False)
    saving = hooks.Checkpoints(run, store, hook, None, speed, CorruptCounter(), stop)
    for step in (1, 2, 3):
        saving(_finish(hook, speed, step, 1.0))
    bad = _finish(hook, speed, 4, float("nan"))
    with pytest.raises(FloatingPointError, match="loss is nan at step 3"):
        saving(bad)
    assert not saved
