"""The training loop of every stage."""

from collections.abc import Sequence

from unified_lift.train.hooks import Hook
from unified_lift.train.stage import Stage


def fit(stage: Stage, hooks: Sequence[Hook]) -> None:
    """Do the steps of a stage that are still to do, with hooks around each, in the order of the list.

    A step trains and returns its loss terms. All else is a hook: bar, log, checkpoints, test scores, profile, stopping
    and the watch for NaN. A hook computes no loss, and a stage knows no hook.

    Raises:
        Interrupted: A hook ended the run; a checkpoint is saved.
        FloatingPointError: A loss or a parameter became NaN or infinite.
    """
    for hook in hooks:
        hook.before_stage(stage)
    try:
        for step in range(stage.first, stage.num_steps):
            for hook in hooks:
                hook.before_step(stage, step)
            try:
                terms = stage.step(step)
            except Exception:
                for hook in hooks:
                    hook.step_failed()
                raise
            for hook in hooks:
                hook.after_step(stage, step, terms)
        for hook in hooks:
            hook.after_stage(stage)
    finally:
        stage.views.close()
        for hook in hooks:
            hook.close(stage)
