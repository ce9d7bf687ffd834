"""Lesson 0.2 - figures that carry their own title, caption and command.

A figure leaves its folder: it is copied into a report, opened a year later, looked at without the code. So what it shows
and how it was made travel inside it, as text chunks of the PNG file (PNG specification, section 11.3.3):

    Title, Description (the caption), Command, Seconds (from the start of the script to the saving of this figure),
    Numbers (if there are any to compare with part_N/expected.json: a JSON object)

`generate_screenshots.py` builds its gallery from nothing else. Figures are files here, never windows: the Agg backend
needs no display.
"""

import json
import os
import time
from pathlib import Path

_STARTED = time.perf_counter()  # before the slow imports: a script imports this module with its first lines

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# Okabe & Ito's palette: told apart by readers with any common colour blindness, and in grey by the order below.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
SEQUENTIAL = "viridis"  # for values from low to high
DIVERGING = "RdBu_r"  # for values around zero

plt.rcParams.update({
    "figure.dpi": 120, "figure.figsize": (8.0, 4.5), "figure.constrained_layout.use": True,
    "font.size": 12, "axes.titlesize": 12, "figure.titlesize": 14, "legend.fontsize": 11, "legend.frameon": False,
    "axes.prop_cycle": matplotlib.cycler(color=COLORS), "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25, "lines.linewidth": 2.0, "image.cmap": SEQUENTIAL,
})


def figure_path(script, name, quick=False):
    """`out/<name>.png` beside `script` (its __file__); a quick run's figures go to out/quick and never replace real ones."""
    return Path(script).resolve().parent / "out" / ("quick" if quick else "") / f"{name}.png"


def heatmap(ax, matrix, *, xlabel, ylabel, xticks=None, yticks=None, fmt=None, **imshow):
    """Draw a (rows, columns) matrix as coloured cells, with the numbers in them when `fmt` (such as "{:.2f}") is given.

    xticks, yticks: labels, one per column or row. A cell that is not finite stays blank. Returns the image, for a colour
    bar.
    """
    matrix = np.ma.masked_invalid(np.asarray(matrix))
    image = ax.imshow(matrix, aspect=imshow.pop("aspect", "auto"), **imshow)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(False)
    if xticks is not None:
        ax.set_xticks(range(len(xticks)), xticks)
    if yticks is not None:
        ax.set_yticks(range(len(yticks)), yticks)
    if fmt is not None:
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5  # perceived brightness (ITU-R BT.601)
                ax.text(column, row, fmt.format(value), ha="center", va="center", color="white" if dark else "black")
    return image


def band(ax, x, runs, **line):
    """The mean of several runs as a line, and between the lowest and the highest of them a band. runs: (n_runs, n)."""
    runs = np.asarray(runs)
    [drawn] = ax.plot(x, runs.mean(axis=0), **line)
    ax.fill_between(x, runs.min(axis=0), runs.max(axis=0), color=drawn.get_color(), alpha=0.2, linewidth=0)


def text_chunks(texts):
    """A dict of names and texts as Pillow writes them into a PNG."""
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    return info


def save_figure(fig, path, *, title, caption, command, numbers=None):
    """Write `fig` as a PNG with its title above it and title, caption and command in its text chunks; then close it.

    path: where to, its folder is made; in a folder `quick` the figure says across its face that it shows a quick run.
    numbers: a dict of floats, and the device ("cpu", "cuda", "mps") that they were measured on, kept with the figure. The
    file appears whole or not at all. Returns the path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.name == "quick":
        fig.text(0.5, 0.5, "quick run", ha="center", va="center", rotation=25, fontsize=60, color="grey", alpha=0.25)
    fig.suptitle(title, parse_math=False)  # a title may quote a text, whatever dollar signs stand in it
    chunks = {"Title": title, "Description": caption, "Command": command,
              "Seconds": f"{time.perf_counter() - _STARTED:.1f}"}
    if numbers is not None:
        chunks["Numbers"] = json.dumps(numbers)
    temporary = path.with_suffix(".png.tmp")
    try:
        fig.savefig(temporary, format="png")
        with Image.open(temporary) as image:  # nothing shines through: without its alpha channel it is an eighth smaller
            image.convert("RGB").save(temporary, format="png", pnginfo=text_chunks(chunks), dpi=image.info["dpi"])
        os.replace(temporary, path)
    finally:
        plt.close(fig)
        temporary.unlink(missing_ok=True)  # there only if something went wrong
    return path
