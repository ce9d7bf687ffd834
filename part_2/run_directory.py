"""Lesson 2.4 - the run directory: all about one training run in one place, so that it can be read, resumed and compared.

    config.json      the flags it was started with          best.pt, last.pt   checkpoints
    metrics.jsonl    one JSON object a logged step          tensorboard/       the same numbers as events
    samples.jsonl    what the model wrote along the way     summary.json       the final figures
"""

import dataclasses
import json
import shutil
from pathlib import Path

from part_0.cli import InputError
from part_2.checkpoint import load_checkpoint, write_atomically, write_json

MAY_CHANGE = {"data", "out", "device", "precision", "resume", "quick"}  # flags that a resumed run may give anew


def append_record(out, name, record):
    """Add one JSON object as a line to the file `name` of the run directory."""
    with open(Path(out) / name, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_records(out, name):
    """The JSON objects of the file `name` of a run directory. InputError when there is none."""
    path = Path(out) / name
    if not path.is_file():
        raise InputError(f"there is no {path}; make the run with: python3 part_2/train.py")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]  # a crash may have cut the last one short


def start_run(config):
    """Make `config.out` an empty run directory with its config.json. An earlier run that left a checkpoint or final figures
    there is kept as DIR.previous, DIR.previous2, ...: nothing is ever deleted.

    Returns where the earlier run is now, or None. InputError when the directory cannot be written.
    """
    out, previous = Path(config.out).resolve(), None
    try:
        has_run = _is_run(out)
        if has_run and (any(out.glob("*.pt")) or (out / "summary.json").exists()):
            names = (f"{out.name}.previous{number}" for number in ("", *range(2, 10**6)))
            previous = next(path for path in map(out.with_name, names) if not path.exists())
            out.rename(previous)
        elif has_run:  # it was cut off before there was anything to keep: only its logs go
            shutil.rmtree(out / "tensorboard", ignore_errors=True)
            for name in ("metrics.jsonl", "samples.jsonl"):
                (out / name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", dataclasses.asdict(config))
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}") from None
    return previous


def _is_run(out):
    try:
        return "steps" in json.loads((out / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False


def refuse_other_flags(config, flags, may_change):
    """InputError when `config` differs from the `flags` (a dict) that its run was started with, but for `may_change`."""
    if vars(config).keys() != flags.keys():
        raise InputError(f"the run in {config.out} was started by another training script, or an older version of it: "
                         "start anew in another --out")
    for name, value in flags.items():
        if name not in may_change and getattr(config, name) != value:
            raise InputError(f"{config.out} was started with --{name} {value}, not {getattr(config, name)}: "
                             "resume with the same flags, or start anew in another --out")


def resume_run(config, data_hash):
    """Find the newest sound checkpoint in `config.out`, and cut the logs back to its step.

    Returns its state, and what is wrong with last.pt if best.pt is used in its place, else None. InputError when there
    is no checkpoint, or when the run was started with other flags or on another text.
    """
    out = Path(config.out)
    if not (out / "last.pt").exists():
        raise InputError(f"--resume: there is no checkpoint in {out}; leave --resume out to start there")
    try:
        state, damage = load_checkpoint(out / "last.pt"), None
    except InputError as error:
        state, damage = load_checkpoint(out / "best.pt"), str(error)
    refuse_other_flags(config, state["config"], MAY_CHANGE)
    if state["data_hash"] != data_hash:
        raise InputError(f"{out} was started on another text than --data {config.data} is now")
    cut_records(out, state["step"])
    return state, damage


def cut_records(out, step):
    """Cut a run's logs back to what came before `step`, where a checkpoint stands; the rest will come again."""
    for name in ("metrics.jsonl", "samples.jsonl"):
        if (Path(out) / name).exists():
            kept = [record for record in read_records(out, name) if record["step"] < step]
            write_atomically(Path(out) / name, "".join(json.dumps(record) + "\n" for record in kept).encode("utf-8"))
