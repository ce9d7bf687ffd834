"""Lesson 0.1 - from raw text to an assistant: what does each stage take in, hand on and cost?

Nothing runs here. The costs are counted, with the 6ND rule, from the sizes in the flags; the defaults are about those of
Parts 4 to 9. Beside them stand the published costs of GPT-3 175B and InstructGPT. What to see: pretraining costs the most
in both; RL costs a sixth of it here and a sixtieth there. N cancels in such a ratio: what differs is the share of tokens.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.pipeline_costs import PETAFLOP_S_DAY, PUBLISHED_PETAFLOP_S_DAYS, rl_flops, training_flops
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


class Stage(NamedTuple):
    name: str
    consumes: str
    produces: str
    tokens: int
    flops: float
    published: float | None  # FLOPs


def pipeline(config):
    """The four stages, in order, with the sizes of `config`."""
    published = {name: days * PETAFLOP_S_DAY for name, days in PUBLISHED_PETAFLOP_S_DAYS.items()}
    rollout_tokens = config.rl_steps * config.rl_rollouts * config.rl_tokens
    rl = sum(rl_flops(config.params, config.reward_params, rollout_tokens, config.rl_epochs).values())
    return [
        Stage("Pretraining", "raw text", "base model", config.pretrain_tokens,
              training_flops(config.params, config.pretrain_tokens), published["pretraining"]),
        Stage("Fine-tuning\n(SFT)", "base model,\ninstructions\nwith answers", "SFT model", config.sft_tokens,
              training_flops(config.params, config.sft_tokens), published["SFT"]),
        Stage("Reward\nmodel", "SFT model,\npairs: better,\nworse answer", "a score for\nany answer", config.reward_tokens,
              training_flops(config.reward_params, config.reward_tokens), None),
        Stage("PPO or\nGRPO", "SFT model,\nreward model,\nprompts", "aligned\nmodel", rollout_tokens, rl, published["RL"])]


def draw(stages):
    """Boxes above, bars beneath, one column a stage. Returns the figure."""
    fig, (flow, ax) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=[1.0, 1.2])
    for column, stage in enumerate(stages):
        box = dict(boxstyle="round,pad=0.5", facecolor="#DCE9F5", edgecolor=BLUE)
        flow.text(column, 2.05, stage.consumes, ha="center", va="center")
        flow.text(column, 1.0, stage.name, ha="center", va="center", weight="bold", bbox=box)
        flow.text(column, 0.0, stage.produces, ha="center", va="center")
        for top, bottom in ((1.65, 1.42), (0.58, 0.28)):
            flow.annotate("", (column, bottom), (column, top), arrowprops=dict(arrowstyle="-|>", color="black"))
        for offset, flops, first, color, label in (
                (-0.2, stage.flops, stages[0].flops, BLUE, "this repository, calculated"),
                (0.2, stage.published, stages[0].published, ORANGE, "GPT-3 / InstructGPT 175B, published")):
            if flops is None:
                ax.text(column + offset, 2e10, "not\npub-\nlished", ha="center", va="bottom")
                continue
            ax.bar(column + offset, flops, 0.38, color=color, label=None if column else label)
            ax.text(column + offset, flops * 1.5, f"{flops:.1e}\n{flops / first:.2g} x".replace("e+", "e"), ha="center",
                    va="bottom", fontsize=11)
        if column:
            flow.annotate("", (column - 0.36, 1.0), (column - 0.62, 1.0), arrowprops=dict(arrowstyle="-|>", color=BLUE, lw=2))
    flow.set(ylim=(-0.35, 2.6), xlim=(-0.55, 3.55))
    flow.axis("off")
    ax.set(yscale="log", ylim=(1e10, 1e29), ylabel="compute (FLOP)", xlabel="stage of the pipeline",
           xticks=range(4), xticklabels=["pretraining", "SFT", "reward model", "RL"])
    ax.set_yticks([1e12, 1e16, 1e20, 1e24])
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper right", ncols=2, columnspacing=1.0)
    return fig


def main(config):
    """Print the table and draw the figure. Returns the stages."""
    stages = pipeline(config)
    print(f"{'stage':<20}{'tokens':>12}{'FLOP here':>12}{'of pretraining':>16}{'FLOP published':>16}{'of pretraining':>16}")
    for stage in stages:
        there = (f"{stage.published:>16.2e}{stage.published / stages[0].published:>16.1%}" if stage.published
                 else f"{'not published':>16}{'':>16}")
        print(f"{' '.join(stage.name.split()):<20}{stage.tokens:>12,}{stage.flops:>12.2e}"
              f"{stage.flops / stages[0].flops:>16.1%}{there}")
    save_figure(draw(stages), figure_path(__file__, "pipeline", config.quick), title="From raw text to an aligned model",
                caption="Each column is a stage: what it takes in, what it hands on, and below what it costs, in FLOP and "
                        "as a multiple of pretraining. Blue is calculated (6ND) for a model of this repository's size, "
                        "orange is as published. Pretraining costs the most in both. The model's size cancels in the "
                        "multiples: they compare how many tokens a stage sees.", command=command_line(__file__, config))
    return stages


if __name__ == "__main__":
    run_script(main, Config, __doc__)
