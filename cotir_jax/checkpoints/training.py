"""Training checkpoints: what trains, optimizer, multipliers and the data iterator, by Orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

METRIC = "validation_psnr"


class TrainingCheckpoints:
    """Keeps the latest checkpoints and the best one by validation; saves in the background.

    A checkpoint appears under its name only when it is complete, so a failed or killed save leaves
    the earlier ones as they were.

    Args:
      folder: made where needed.
      keep: latest checkpoints to keep, beside the best.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = Path(folder).absolute()
        best = policies.BestN(get_metric_fn=lambda metrics: metrics[METRIC], n=1)
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(n=keep), best]
                ),
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, step: int, state: Any, iterator: Any, metrics: dict[str, float]) -> None:
        """Starts saving `state` (a pytree of arrays) and the iterator's position.

        Raises:
          ValueError: when this save, or an earlier one in the background, could not be written.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_by_path(state)),
            data=grain.checkpoint.CheckpointSave(iterator),
        )
        with _readable(f"saving step {step} to", self.folder):
            self.manager.save(step, args=args, metrics=metrics, force=True)

    def wait(self) -> None:
        """Waits for the save in the background."""
        with _readable("saving to", self.folder):
            self.manager.wait_until_finished()

    def latest_step(self) -> int | None:
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
        _, structure = jax.tree.flatten(abstract_state)
        return jax.tree.unflatten(structure, [flat[name] for name in _by_path(abstract_state)])

    def restore_iterator(self, step: int, iterator: Any) -> None:
        """Sets the data iterator to its position after `step`."""
        with _readable(f"restoring step {step} from", self.folder):
            args = ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(iterator))
            self.manager.restore(step, args=args)

    def close(self) -> None:
        self.manager.close()


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by their path: the checkpoint does not depend on the classes of the tree."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


class _readable:
    """Turns the storage libraries' errors into one line that names the folder."""

    def __init__(self, doing: str, folder: Path):
        self.doing, self.folder = doing, folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{self.doing} {self.folder} failed: {reason}. Earlier checkpoints are unchanged; "
                "free some space or repair the folder and run the same command again"
            ) from error
