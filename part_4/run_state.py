"""Lesson 4.4 - what a checkpoint holds: all that the next step depends on, from every process.

    state = progress | weights | optimizer | scaler | random generators of every rank | config | tokenizer | text's hash

Batch and learning rate are functions of the step, so the step is their whole state.
"""

import dataclasses
import math
from dataclasses import dataclass

from part_0.cli import InputError
from part_0.device import rng_state, set_rng_state
from part_2.run_directory import refuse_other_flags
from part_4.checkpoint import checkpoint_files, load_newest
from part_4.distributed import full_state, gather, set_full_state, world_size


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    tokens: int = 0  # read so far, where steps differ in them (part_6)
    seconds: float = 0.0  # of training, without evaluation
    save_seconds: float = 0.0
    best: float = math.inf  # validation loss so far, ...
    best_step: int = 0  # ... and where it was
    skipped: int = 0  # updates in a row


def find_checkpoint(config, may_change):
    """The checkpoint that --resume asks for. Returns (state, its path, what was wrong with newer ones), (None, None, []) for
    a new run.

    InputError when there is none though --resume is yes, when all are damaged, when the run was started with other flags
    (but for `may_change`), or when the processes do not see the same file.
    """
    state, path, damages = None, None, []
    if config.resume == "yes" or (config.resume == "auto" and checkpoint_files(config.out)):
        state, path, damages = load_newest(config.out)
        refuse_other_flags(config, state["config"], may_change)
    if len(set(gather(path and path.name))) > 1:
        raise InputError(f"the processes found different checkpoints: --out {config.out} must be a folder that all see")
    return state, path, damages


def snapshot(now, model, optimizers, scaler, **facts):
    """The state to save, complete in rank 0; every process must call it. now: a Progress; facts: what else goes in."""
    weights, moments = full_state(model, optimizers)
    return {"step": now.step, "progress": dataclasses.asdict(now), "model": weights, "optimizer": moments,
            "scaler": scaler.state_dict(), "rng": gather(rng_state()), **facts}


def restore(state, model, optimizers, scaler, rank):
    """Put a `snapshot` back; every process gives all of it. Returns the Progress.

    With another number of processes than it was taken from, the random number generators stay as they are.
    """
    set_full_state(model, optimizers, state["model"], state["optimizer"])
    if state["scaler"]:  # empty unless the run was in fp16
        scaler.load_state_dict(state["scaler"])
    if len(state["rng"]) == world_size():
        set_rng_state(state["rng"][rank])
    return Progress(**state["progress"])
