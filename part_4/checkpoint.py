"""Lesson 4.4 - checkpoints that survive anything: a kill at any moment, a full disk, a damaged file, the wrong run.

    OUT/step_00000200.pt   OUT/step_00000250.pt        the last K, each whole or not there (lesson 2.4)
    OUT/best.pt                    the one with the lowest validation loss: a second name of the same file, where possible

A run that is stopped and resumed must end with the very weights of a run that was not. So a checkpoint holds everything
that the next step depends on: weights, optimizer, the place in schedule and data (both are functions of the step), scaler,
every random number generator, config and tokenizer. What it depends on besides (flags, text, tokenizer) is compared.
"""

import os
import re
import shutil
import signal
from pathlib import Path

from part_0.cli import InputError
from part_2.checkpoint import load_checkpoint, save_checkpoint
from part_2.checkpoint import load_model as load_part_2_model
from part_3.modern_config import ModernGPTConfig
from part_3.modern_gpt import ModernGPT
from part_4.bpe_tokenizer import BPETokenizer


def checkpoint_files(folder):
    """The numbered checkpoints of a run directory, newest first."""
    return sorted((path for path in Path(folder).glob("step_*.pt") if re.fullmatch(r"step_\d{8,}\.pt", path.name)),
                  reverse=True)


def save_numbered(folder, state, keep_last=2, is_best=False):
    """Save `state`, a dict with "step", as the newest checkpoint of `folder`; then keep the last `keep_last` up to it.

    is_best: it becomes best.pt too. Returns its path. InputError when it cannot be written, as on a full disk: the older
    ones are untouched.
    """
    folder = Path(folder)
    path = folder / f"step_{state['step']:08d}.pt"
    try:
        save_checkpoint(path, state)
        if is_best:
            give_second_name(path, folder / "best.pt")
    except OSError as error:
        older = [file.name for file in checkpoint_files(folder)]
        raise InputError(f"the checkpoint of step {state['step']} could not be written to {folder}: {error.strerror}; "
                         + (f"{older[0]} is intact: make room and go on with --resume auto" if older else
                            "there is no older one")) from None
    files = checkpoint_files(folder)
    newer = files.index(path)  # damaged, or of a future that was thrown away
    for other in files[:newer] + files[newer + keep_last:]:
        other.unlink()
    for rest in folder.glob("*.pt.*tmp"):  # of a save that was killed
        rest.unlink()
    return path


def give_second_name(path, name):
    """Let `name` be the same file as `path`, in one moment; a copy where the file system cannot do that."""
    temporary = Path(f"{name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)


def load_newest(folder):
    """The newest sound checkpoint of a run directory. Returns (state, its path, what was wrong with the newer ones).

    InputError when there is none, or when all are damaged.
    """
    damages = []
    for path in checkpoint_files(folder):
        try:
            return load_checkpoint(path), path, damages
        except InputError as error:
            damages.append(str(error))
    raise InputError("; ".join(damages) or f"there is no checkpoint in {folder}; leave --resume out to start there")


class StopRequest:
    """Context in which Ctrl-C and SIGTERM are only noted, so that the loop can finish its step and save.

    `signal` is None, or the number of the first signal that came. A second Ctrl-C stops at once; a SIGTERM after a Ctrl-C
    does not, because torchrun sends one.
    """

    def __enter__(self):
        self.signal, self.interrupts = None, 0
        self.previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        self.signal = self.signal or number
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1:
            raise KeyboardInterrupt

    def __exit__(self, *exception):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def load_model(path, device="cpu"):
    """Rebuild model (in eval mode) and tokenizer from a checkpoint of part_4/train.py. Returns (model, tokenizer, state)."""
    return load_part_2_model(path, device, lambda sizes: ModernGPT(ModernGPTConfig(**sizes)), "part_4/train.py",
                             lambda state: BPETokenizer.from_state(state["tokenizer"]))
