"""Lesson 0.1 - from raw text to an assistant: what does each stage take in, hand on and cost?

Nothing is trained here. The costs are counted, with the 6ND rule, from the sizes in the flags; the defaults are about
those of Parts 4 to 9. Beside them stand the published costs of GPT-3 175B and InstructGPT. What to see: pretraining
costs the most in both; RL costs a sixth of it here and a sixtieth there. N cancels in such a ratio: what differs is the
number of tokens.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import textwrap
from dataclasses import dataclass
from typing import ClassVar

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.pipeline_costs import pipeline
from part_0.plotting import BLUE, ORANGE, figure_path, plt, save_figure


@dataclass(frozen=True)
class Config:
    params: int = option(1_000_000, "parameters N of the language model")
    reward_params: int = option(1_000_000, "parameters of the reward model")
    pretrain_tokens: int = option(3_000_000, "tokens of pretraining")
    sft_tokens: int = option(1_000_000, "tokens of supervised fine-tuning")
    reward_tokens: int = option(300_000, "tokens of reward model training, both answers of a pair counted")
    rl_steps: int = option(40, "reinforcement learning steps")
    rl_rollouts: int = option(128, "rollouts a step")
    rl_tokens: int = option(32, "tokens a rollout, prompt and answer")
    rl_epochs: int = option(2, "times the update goes over each rollout")
    seed: int = option(0, "nothing here is random: taken because every script takes it")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = {}

    def __post_init__(self):
        check_positive(self, "params", "reward_params", "pretrain_tokens", "sft_tokens", "reward_tokens", "rl_steps",
                       "rl_rollouts", "rl_tokens", "rl_epochs")


def draw(stages):
    """Boxes above, bars beneath, one column a stage. Returns the figure."""
    fig, (flow, ax) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=[1.0, 1.2])
    black, blue = dict(arrowstyle="-|>", color="black"), dict(arrowstyle="-|>", color=BLUE, lw=2)
    for column, stage in enumerate(stages):
        for y, words, width in ((2.05, stage.consumes, 14), (0.0, stage.produces, 12)):
            flow.text(column, y, textwrap.fill(words, width), ha="center", va="center")
        flow.text(column, 1.0, textwrap.fill(stage.name, 10, break_long_words=False), ha="center", va="center",
                  weight="bold", bbox=dict(boxstyle="round,pad=0.5", facecolor="#DCE9F5", edgecolor=BLUE))
        flow.annotate("", (column, 1.38), (column, 1.65), arrowprops=black)
        flow.annotate("", (column, 0.30), (column, 0.62), arrowprops=black)
        if column:
            flow.annotate("", (column - 0.38, 1.0), (column - 0.62, 1.0), arrowprops=blue)
        for offset, flops, pretraining, color in ((-0.2, stage.flops, stages[0].flops, BLUE),
                                                  (0.2, stage.published, stages[0].published, ORANGE)):
            if flops is None:
                ax.text(column + offset, 2e10, "not\npub-\nlished", ha="center", va="bottom")
                continue
            ax.bar(column + offset, flops, 0.38, color=color)
            ax.text(column + offset, flops * 1.5, f"{flops:.1e}\n{flops / pretraining:.2g} x".replace("e+", "e"),
                    ha="center", va="bottom", fontsize=11)
    flow.set(ylim=(-0.35, 2.6), xlim=(-0.55, 3.55))
    flow.axis("off")
    ax.set(yscale="log", ylim=(1e10, 1e29), yticks=[1e12, 1e16, 1e20, 1e24], ylabel="compute (FLOP)",
           xticks=range(4), xticklabels=[stage.name for stage in stages], xlabel="stage of the pipeline")
    ax.grid(axis="x", visible=False)
    ax.legend([plt.Rectangle((0, 0), 1, 1, color=color) for color in (BLUE, ORANGE)],
              ["this repository, calculated", "GPT-3 / InstructGPT 175B, published"], loc="upper right", ncols=2)
    return fig


def main(config):
    """Print the table and draw the figure. Returns the stages."""
    stages = pipeline(config.params, config.reward_params, config.pretrain_tokens, config.sft_tokens,
                      config.reward_tokens, config.rl_steps * config.rl_rollouts * config.rl_tokens, config.rl_epochs)
    print(f"{'stage':<16}{'tokens':>12}{'FLOP here':>12}{'multiple':>10}{'FLOP published':>18}{'multiple':>10}")
    for stage in stages:
        there = (f"{stage.published:>18.2e}{stage.published / stages[0].published:>10.2g}" if stage.published
                 else f"{'not published':>18}")
        print(f"{stage.name:<16}{stage.tokens:>12,}{stage.flops:>12.2e}{stage.flops / stages[0].flops:>10.2g}{there}")
    save_figure(draw(stages), figure_path(__file__, "pipeline", config.quick),
                title="From raw text to an aligned model", command=command_line(__file__, config),
                caption="Each column is a stage: what it takes in, what it hands on, and below what it costs, in FLOP "
                        "and as a multiple of pretraining. Blue is calculated (6ND) for a model of this repository's "
                        "size, orange is as published (for pretraining by the same rule). Pretraining costs the most in "
                        "both. The model's size cancels in the multiples: they compare how many tokens a stage sees.")
    return stages


if __name__ == "__main__":
    run_script(main, Config, __doc__)
