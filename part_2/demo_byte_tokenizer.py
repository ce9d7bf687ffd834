"""Lesson 2.1 - what does it cost to write every language with 256 tokens?

Encodes one greeting in several languages and counts the bytes that a character takes, shows what a text looks like as
ids, and counts which bytes a corpus uses. What to see: English takes one token a character, Greek and Russian two,
Chinese and Hindi three, an emoji four; and of the 256 ids a corpus of English uses few, most of them rarely.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from part_0.cli import QUICK_HELP, command_line, option, run_script
from part_0.plotting import BLUE, ORANGE, figure_path, plt, save_figure
from part_2.byte_tokenizer import ByteTokenizer
from part_2.corpus import DATA_HELP, load_corpus

GREETINGS = {"English": "good day", "German": "schönen Tag", "French": "bonne journée", "Greek": "καλημέρα",
             "Russian": "добрый день", "Hindi": "शुभ दिन", "Chinese": "你好", "emoji": "👋🌍"}


@dataclass(frozen=True)
class Config:
    data: str = option("python-docs", DATA_HELP)
    n_bytes: int = option(24, "how many of the most frequent bytes to draw")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_bytes=5)

    def __post_init__(self):
        if not 1 <= self.n_bytes <= 256:
            raise ValueError(f"--n_bytes must be from 1 to 256, not {self.n_bytes}")


def main(config):
    tokenizer = ByteTokenizer()
    costs = {}
    for language, text in GREETINGS.items():
        ids = tokenizer.encode(text)
        costs[language] = len(ids) / len(text)
        print(f"{language:8s} {text:12s} {ids}")
        if tokenizer.decode(ids) != text:
            raise AssertionError(f"{text!r} did not survive the round trip")
    half = tokenizer.encode("é")[:1]
    print(f"half a character, {half}, is shown and not dropped: {tokenizer.decode(half)!r}")

    ids = tokenizer.encode(load_corpus(config.data))
    counts = Counter(ids).most_common()
    print(f"{config.data}: {len(ids):,} bytes, {len(counts)} of the 256 in use")

    fig, (ax_cost, ax_frequency) = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=(2, 3))
    bars = ax_cost.barh(list(costs), list(costs.values()), color=BLUE)
    ax_cost.bar_label(bars, fmt="%.1f", padding=3)
    ax_cost.invert_yaxis()
    ax_cost.set(xlabel="tokens (bytes) a character", xlim=(0, 4.6), title="one greeting in many scripts")
    shown = counts[:config.n_bytes]
    names = {ord(" "): "␣", ord("\n"): "\\n"}
    ax_frequency.bar([names.get(id, chr(id) if 32 < id < 127 else f"{id:02x}") for id, _ in shown],
                     [100 * count / len(ids) for _, count in shown], color=ORANGE)
    ax_frequency.tick_params(axis="x", labelsize=min(12, 300 / config.n_bytes))
    ax_frequency.set(xlabel="byte", ylabel="share of the corpus (%)",
                     title=f"{len(counts)} of 256 bytes occur in {pathlib.Path(config.data).name}")
    path = save_figure(
        fig, figure_path(__file__, "byte_tokenizer", config.quick), title="Text as bytes",
        caption="Left: tokens that a character takes in UTF-8; with bytes as tokens no script is impossible, but some are "
                "long. Right: the most frequent bytes of the corpus (␣ is a space, \\n a new line): the space and a few "
                "letters make up most of it, so a model gains a lot by learning these frequencies alone.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
