"""Lesson 4.1 - how much shorter does a learnt vocabulary make a text, and what has it learnt?

Learns merges from the first nine tenths of a text, once; a smaller vocabulary is the beginning of a larger one. What to see:
each doubling of the vocabulary makes the text shorter, and the last doublings help the text that was seen more than the text
that was not. A sentence falls into letters at first, then into syllables, at last into whole words with their spaces.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import time
from dataclasses import dataclass
from typing import ClassVar

from part_0.cli import QUICK_HELP, check_positive, check_text, command_line, option, run_script
from part_0.plotting import BLUE, ORANGE, SKY, figure_path, plt, save_figure
from part_2.byte_tokenizer import N_BYTES
from part_2.corpus import DATA_HELP, load_corpus
from part_4.bpe_tokenizer import BPETokenizer
from part_4.bpe_training import count_chunks, train_bpe

SHADES = (SKY, "#F5D76E", "#BFE3D3", "#E8B8D4")  # light, so that black letters show; neighbours differ


@dataclass(frozen=True)
class Config:
    data: str = option("python-docs", DATA_HELP)
    n_merges: int = option(8192, "merges to learn at most")
    sentence: str = option("The interpreter's documentation explains every statement.", "what is drawn in pieces")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_merges=300)

    def __post_init__(self):
        check_positive(self, "n_merges")
        check_text(self, "sentence")


def draw_pieces(ax, rows, sentence):
    """Each row of `rows`, {number of merges: tokens as bytes}, as coloured boxes over the letters of the sentence."""
    for y, tokens in enumerate(rows.values()):
        x = 0
        for i, token in enumerate(tokens):
            ax.add_patch(plt.Rectangle((x, y - 0.4), len(token), 0.8, facecolor=SHADES[i % len(SHADES)],
                                       edgecolor="white", linewidth=1.5))
            x += len(token)
        for x, byte in enumerate(sentence.encode("utf-8")):
            ax.text(x + 0.5, y, "␣" if byte == 32 else chr(byte) if 32 < byte < 127 else "·", ha="center", va="center",
                    family="monospace", size=10)
    ax.set(xlim=(0, len(sentence.encode("utf-8"))), ylim=(len(rows) - 0.5, -0.5), xlabel="byte of the sentence",
           ylabel="merges")
    ax.set_yticks(range(len(rows)), [f"{n:,}: {len(tokens)} tokens" for n, tokens in rows.items()])
    ax.grid(False)


def main(config):
    text = load_corpus(config.data)
    middle = len(text) - len(text) // 10
    parts = {"training text": (text[:middle], BLUE, "-"), "held-out text": (text[middle:], ORANGE, "--")}
    started = time.perf_counter()
    counts = count_chunks([text[:middle]])
    counted = time.perf_counter()
    merges, _ = train_bpe(counts, N_BYTES + config.n_merges)
    print(f"{len(counts):,} distinct chunks counted in {counted - started:.2f} s; {len(merges):,} merges learnt in "
          f"{time.perf_counter() - counted:.2f} s")
    print("the first merges:", ", ".join(repr((left + right).decode("utf-8", "replace")) for left, right in merges[:20]))

    numbers = [0, *(2**i for i in range(5, 20) if 2**i < len(merges)), len(merges)]
    ratios = {name: [] for name in parts}
    for n_merges in numbers:
        tokenizer = BPETokenizer.from_merges(merges[:n_merges], ())
        for name, (part, *_) in parts.items():
            ratios[name].append(len(part.encode("utf-8")) / len(tokenizer.encode(part)))
        print(f"vocabulary {tokenizer.vocab_size:6,d}: " + ", ".join(
            f"{values[-1]:.3f} bytes per token on the {name}" for name, values in ratios.items()))
    rows = {}
    for n_merges in sorted({0, *(n for n in (50, 200, 1000, 4000) if n < len(merges)), len(merges)}):
        tokenizer = BPETokenizer.from_merges(merges[:n_merges], ())
        rows[n_merges] = [tokenizer.decode_bytes([id]) for id in tokenizer.encode(config.sentence)]

    fig, (ax_ratio, ax_pieces) = plt.subplots(2, 1, figsize=(10, 8), height_ratios=(5, 4))
    for name, (_, color, line) in parts.items():
        ax_ratio.plot([N_BYTES + n for n in numbers], ratios[name], color=color, linestyle=line, marker="o", label=name)
    ax_ratio.set(xscale="log", xlabel="vocabulary (ids)", ylabel="bytes per token", ylim=(0, None),
                 title="what one token stands for")
    ticks = [N_BYTES * 2**i for i in range(12) if N_BYTES * 2**i <= 1.1 * (N_BYTES + len(merges))]
    ax_ratio.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax_ratio.minorticks_off()
    ax_ratio.legend(loc="lower right")
    draw_pieces(ax_pieces, rows, config.sentence)
    ax_pieces.set_title("one sentence after so many merges")
    path = save_figure(
        fig, figure_path(__file__, "bpe", config.quick), title="Byte-pair encoding buys length with vocabulary",
        caption=f"Above: with {N_BYTES} ids a token is a byte; with {N_BYTES + len(merges):,} it stands for "
                f"{ratios['training text'][-1]:.2f} bytes of the training text and {ratios['held-out text'][-1]:.2f} of the "
                "held-out text. Below: the same sentence as more and more merges are applied; a box is a token (␣ is a "
                f"space): {len(rows[0])} at first, {len(rows[len(merges)])} at last.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
