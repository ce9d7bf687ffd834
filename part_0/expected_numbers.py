"""Lesson 0.2 - is my loss normal? The numbers that a part is about, and the bands in which they fall.

part_N/expected.json lists them, the one that the part is about first. A band comes from at least three seeds with all
flags at their defaults: from their lowest to their highest value, and on both sides as much again, but at least a fiftieth
of their mean, since another processor rounds otherwise. Of a speed (kind "speed") it is half of the lowest to twice the
highest: it is the machine's, not the seed's.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from PIL import Image

from part_0.cli import InputError


@dataclass(frozen=True)
class Band:
    """Where a number of a part falls; the fields of an entry of expected.json, and the part."""

    part: int
    metric: str  # its name in summary.json or in the figure's own text chunks
    label: str  # what it is, with its unit
    source: str  # within the part: "runs/train", whose summary.json holds it, or a figure, "out/profiler.png"
    command: str  # what makes it
    device: str  # where `seeds` were measured: "cpu", "cuda" or "mps"
    seeds: tuple  # one value a seed
    low: float
    high: float
    lesson: str  # "2.4", which explains it
    below: str  # what a value below the band usually means, and what to do
    above: str
    kind: str = "result"  # or "speed"
    limits: tuple = (float("-inf"), float("inf"))  # of what is possible: a share lies in (0, 1)

    def place(self, value):
        """"inside", "below" or "above"."""
        return "below" if value < self.low else "above" if value > self.high else "inside"

    def meaning(self, value):
        """What it usually means that `value` lies where it does."""
        return {"inside": "", "below": self.below, "above": self.above}[self.place(value)]


def widen(seeds, kind="result", limits=(float("-inf"), float("inf"))):
    """The band (low, high) of some measured values, by the rule above."""
    if kind == "speed":
        low, high = min(seeds) / 2, max(seeds) * 2
    else:
        margin = max(max(seeds) - min(seeds), abs(mean(seeds)) / 50)
        low, high = min(seeds) - margin, max(seeds) + margin
    return max(low, limits[0]), min(high, limits[1])


def load_bands(root):
    """The Bands of all part_N/expected.json under `root`, part by part. InputError for a file that cannot be read."""
    bands = []
    for path in sorted(Path(root).glob("part_[0-9]/expected.json")):
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            bands += [Band(int(path.parent.name[-1]), **{key: tuple(value) if isinstance(value, list) else value
                                                         for key, value in entry.items()}) for entry in entries]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path.relative_to(root).as_posix()} is damaged ({error}): git checkout brings it "
                             "back") from None
    return bands


def measured(root, band):
    """(value, device) of the last run that gave this number, or None when there was none that ended."""
    path = Path(root) / f"part_{band.part}" / band.source
    try:
        if path.suffix == ".png":
            with Image.open(path) as image:
                numbers = json.loads(image.text["Numbers"])
        else:
            numbers = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        return float(numbers[band.metric]), str(numbers["device"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
