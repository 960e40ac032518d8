"""Training checkpoints by Orbax: trained weights, optimizer, multipliers, counts of samples.

The data's order is a function of (seed, step), so the step says where reading goes on, whatever the
number of processes or workers was.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from cotir_jax import files

METRIC = "validation_psnr"


class TrainingCheckpoints:
    """Keeps the latest checkpoints and the best one by validation; saves in the background.

    A checkpoint appears under its name only when it is complete, so a failed or killed save leaves
    the earlier ones as they were.

    Args:
      folder: made where needed.
      keep: latest checkpoints to keep, besides the best.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = Path(folder).absolute()
        # A run that is told to stop saves without validating.
        best = policies.BestN(get_metric_fn=lambda metrics: metrics.get(METRIC, -math.inf), n=1)
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(n=keep), best]
                ),
                cleanup_tmp_directories=True,
            ),
        )

    def save(
        self, step: int, state: Any, samples: dict[str, int], metrics: dict[str, float]
    ) -> None:
        """Starts saving `state` (a pytree of arrays) and counts of samples; all processes call it.

        Raises:
          ValueError: when this save, or an earlier one in the background, could not be written.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_by_path(state)),
            samples=ocp.args.JsonSave(samples),
        )
        with _readable(f"saving step {step} to", self.folder):
            self.manager.save(step, args=args, metrics=metrics, force=True)

    def wait(self) -> None:
        """Waits for the save in the background."""
        with _readable("saving to", self.folder):
            self.manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        return self.manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the highest validation PSNR, or the latest where none was validated."""
        scored = {
            step: metrics[METRIC]
            for step in self.manager.all_steps()
            if (metrics := self.manager.metrics(step)) and METRIC in metrics
        }
        return max(scored, key=lambda step: scored[step]) if scored else self.latest_step()

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Restores the arrays of a step.

        Args:
          step: one that exists.
          abstract_state: pytree of `jax.ShapeDtypeStruct` with the shardings to restore to.

        Raises:
          ValueError: for a damaged checkpoint or one of another model.
        """
        with _readable(f"restoring step {step} from", self.folder):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(_by_path(abstract_state)))
            flat = self.manager.restore(step, args=args).state
        leaves = [flat[name] for name in _by_path(abstract_state)]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)

    def restore_samples(self, step: int) -> dict[str, int]:
        """The counts of samples that were saved with `step`.

        Raises:
          ValueError: for a damaged checkpoint.
        """
        with _readable(f"restoring step {step} from", self.folder):
            args = ocp.args.Composite(samples=ocp.args.JsonRestore())
            return self.manager.restore(step, args=args).samples

    def close(self) -> None:
        """Waits for saves in the background and stops them."""
        self.manager.close()


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by their path: the checkpoint does not depend on the classes of the tree."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@contextlib.contextmanager
def _readable(doing: str, folder: Path) -> Iterator[None]:
    """Turns the storage libraries' errors into one line that names the folder."""
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise  # another process ended, and its connection with it: no error of the storage
    except Exception as error:
        raise ValueError(
            f"{doing} {folder} failed: {files.one_line(error, 300)}. Earlier checkpoints are "
            "unchanged; free some space or repair the folder and run the same command again"
        ) from error
