"""Lesson 9.5 - what has each stage of the chain gained?

Asks the base model (part_4/train.py), the fine-tuned one (part_6/train_sft.py), and the policies of part_8/train_ppo.py and
part_9/train_grpo.py the same held-out prompts: tasks greedily, for the verifier, and stories sampled at temperature 1, for
the utility that stands behind the preferences. The reward model (part_7/train_reward_model.py), which only PPO and GRPO see,
chooses between answers to held-out prompts. The base model gets the template's tokens first, untrained. What to see:
fine-tuning teaches to answer, reinforcement learning to answer as is liked, and the first is nearly kept by the second.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import math
import statistics
from dataclasses import dataclass
from typing import ClassVar

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, pick_device
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, figure_path, plt, save_figure
from part_4.run_config import RUNS as BASE_RUNS
from part_6.chat_model import load_model, resize_vocabulary
from part_6.evaluation import answer, held_out_tasks, judge, summarise
from part_6.metrics import bootstrap_interval
from part_6.prompt_template import END, chat_tokenizer
from part_6.sft_config import RUNS as SFT_RUNS
from part_6.task_families import EXACT
from part_7.gold_utility import THING, TONES, gold_utility
from part_7.preference_data import make_pairs
from part_7.reward_config import RUNS as REWARD_RUNS
from part_7.reward_config import Config as RewardConfig
from part_7.reward_figures import pair_rewards, pair_table
from part_7.reward_model import load_reward_model
from part_8.policy_scores import answer_scores, sample_answers
from part_8.ppo_config import RUNS as PPO_RUNS
from part_8.prompts import TASKS, load_prompts
from part_9.grpo_config import RUNS

PARTS = {"base": "part 4", "SFT": "part 6", "PPO": "part 8", "GRPO": "part 9"}
SHOWN, WIDTH = ("story", "add"), 65  # families of which an answer is shown; characters of a line
STAGES = {"base": "0.55", "SFT": BLUE, "PPO": ORANGE, "GRPO": GREEN}
FLOOR = -0.6  # lowest utility that is drawn
BEST = max(TONES.values()) + THING  # the highest utility of a story


@dataclass(frozen=True)
class Config:
    base: str = option(str(BASE_RUNS / "train" / "best.pt"), "the base model, a checkpoint of part_4/train.py")
    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "the fine-tuned model, a checkpoint of part_6/train_sft.py")
    reward_model: str = option(str(REWARD_RUNS / "reward_model" / "best.pt"),
                               "the reward model, a checkpoint of part_7/train_reward_model.py")
    ppo: str = option(str(PPO_RUNS / "ppo" / "best.pt"), "a checkpoint of part_8/train_ppo.py")
    grpo: str = option(str(RUNS / "grpo" / "best.pt"), "a checkpoint of part_9/train_grpo.py")
    n_tasks: int = option(60, "held-out tasks of each family, answered greedily")
    n_stories: int = option(200, "held-out story prompts, one sample each")
    n_pairs: int = option(60, "held-out story prompts, and as many other tasks, whose answers the reward model compares")
    block_size: int = option(40, "most tokens of a sampled story")
    seed: int = option(0, "of prompts and samples")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(
        {name: str(runs / "quick" / "best.pt") for name, runs in
         (("base", BASE_RUNS), ("sft", SFT_RUNS), ("reward_model", REWARD_RUNS), ("ppo", PPO_RUNS), ("grpo", RUNS))},
        n_tasks=2, n_stories=6, n_pairs=7, block_size=8)

    def __post_init__(self):
        check_positive(self, "n_tasks", "n_stories", "n_pairs", "block_size")


def load_chain(config, device):
    """{stage: model} of STAGES, the reward model, and the tokenizer of all. InputError names the command that makes a stage
    which is missing."""
    base, tokenizer, _ = load_model(config.base, device, trainer="part_4/train.py")
    tokenizer = chat_tokenizer(tokenizer)
    models = {"base": resize_vocabulary(base, tokenizer.vocab_size)}
    loaders = {"SFT": (config.sft, "part_6/train_sft.py"), "PPO": (config.ppo, "part_8/train_ppo.py"),
               "GRPO": (config.grpo, "part_9/train_grpo.py")}
    reward_model, own, _ = load_reward_model(config.reward_model, device)
    tokenizers = {config.reward_model: own}
    for stage, (path, trainer) in loaders.items():
        models[stage], tokenizers[path], _ = load_model(path, device, trainer=trainer)
    for path, own in tokenizers.items():
        if own.state() != tokenizer.state():
            raise InputError(f"{path} does not belong to a chain that began with {config.base}: it reads other tokens")
    return models, reward_model, tokenizer


def shortened(text, width):
    """A text in one line of at most `width` characters; what is not ASCII is a question mark, so that any font has it."""
    line = "".join(sign if " " <= sign <= "~" else "?" for sign in " ".join(text.split()))
    return line if len(line) <= width else line[:width - 2].rstrip() + " …"


def draw_bars(ax, rows, digits, floor=-math.inf):
    """A bar a stage with its interval and its number. rows: {stage: (mean, low, high)}; floor: the axis' lower end, below
    which a bar is hatched, and its number has an arrow."""
    for place, (stage, (mean, low, high)) in enumerate(rows.items()):
        seen = mean > floor
        ax.bar(place, max(mean, floor), 0.66, color=STAGES[stage], hatch=None if seen else "//", edgecolor="white",
               linewidth=0)
        if seen:
            ax.errorbar(place, mean, [[max(0, mean - low)], [max(0, high - mean)]], color=BLACK, linewidth=1.5, capsize=4)
        ax.annotate(f"{mean:.{digits}f}" + " ↓" * (not seen), (place, max(high, 0)), (0, 4), textcoords="offset points",
                    ha="center", va="bottom", fontsize=15)
    ax.set_xticks(range(len(rows)), [f"{stage}\n{PARTS[stage]}" for stage in rows], fontsize=13)
    ax.grid(False, axis="x")


def main(config):
    device = pick_device(config.device)
    models, reward_model, tokenizer = load_chain(config, device)
    stop_ids = (tokenizer.special_ids[END], *(id for name, id in tokenizer.special_ids.items() if name != END))
    tasks = held_out_tasks(config.n_tasks, config.seed)
    stories = load_prompts(TASKS, "test", config.n_stories, config.seed, ("story",), tokenizer)
    pairs = make_pairs(models["SFT"], tokenizer, "test", config.n_pairs, config.n_pairs, RewardConfig.temperature,
                       config.seed)
    chosen = pair_table(pairs.pairs, pairs.gaps, *pair_rewards(reward_model, tokenizer, pairs.pairs),
                        RewardConfig.temperature)["all"]
    exact, utility, texts, sampled = {}, {}, {}, {}
    for number, (stage, model) in enumerate(models.items()):
        records = judge(tasks, answer(model, tokenizer, [task.prompt for task in tasks]))
        exact[stage] = [100 * x for x in summarise(records)["mean"]]
        texts[stage] = {record["prompt"]: record for record in records}
        sampled[stage] = sample_answers(model, models["SFT"], reward_model, tokenizer, stories, config.block_size, stop_ids,
                                        config.seed + number)  # with one seed the first words would often be the same
        gold = sampled[stage].gold
        utility[stage] = statistics.fmean(gold), *bootstrap_interval([gold])

    print(f"{'':6s}{'exact match, %':>22s}{'utility of stories':>24s}{'better than SFT, %':>24s}{'valid, %':>10s}"
          f"{'KL, nats':>10s}")
    for stage, own in sampled.items():
        scores = answer_scores(own, "now", sampled["SFT"])
        win = [100 * scores[f"win_rate{end}"] for end in ("", "_low", "_high")]
        print(f"{stage:6s}" + "{:8.1f} [{:4.1f}, {:5.1f}]".format(*exact[stage])
              + "{:9.2f} [{:5.2f}, {:5.2f}]".format(*utility[stage])
              + ("{:9.1f} [{:4.1f}, {:5.1f}]" if stage != "SFT" else "{0:>24s}").format(*(win if stage != "SFT" else "-"))
              + f"{100 * scores['correct_now']:10.1f}{scores['kl_now']:10.2f}")
    print("reward model: prefers what the annotator did in {:.1%} [{:.1%}, {:.1%}] of {} held-out pairs; he himself chooses "
          "the better one in {:.1%}\n".format(*(chosen[key] for key in ("accuracy", "low", "high", "n", "consistency"))))

    shown = [max((task for task in tasks if task.family == family), key=lambda task: task.difficulty) for family in SHOWN]
    lines = []
    for task in shown:
        lines.append(("", shortened(task.prompt, WIDTH), "utility" if task.family == "story" else ""))
        for stage in STAGES:
            record = texts[stage][task.prompt]
            worth = gold_utility(task, record["answer"], record["ended"])
            verdict = f"{worth:.1f}" if task.family == "story" else "right" if record["correct"] else "wrong"
            lines.append((stage, shortened(record["answer"], WIDTH), verdict))
    for name, text, verdict in lines:
        print(f"{name:6s}{text:{WIDTH}s}  {verdict}")

    fig = plt.figure(figsize=(10, 8.8))
    grid = fig.add_gridspec(2, 2, height_ratios=(1.4, 1))
    ax_exact, ax_gold, ax_text = (fig.add_subplot(place) for place in (grid[0, 0], grid[0, 1], grid[1, :]))
    draw_bars(ax_exact, exact, 0)
    ax_exact.set(ylabel="right answers (%)", ylim=(0, 112), yticks=range(0, 101, 25))
    ax_exact.set_title("SFT teaches it to answer", fontsize=15)
    draw_bars(ax_gold, utility, 2, FLOOR)
    ax_gold.axhline(BEST, color=BLACK, linestyle=":")
    ax_gold.text(-0.45, BEST + 0.03, f"best possible: {BEST:g}", va="bottom", fontsize=13)
    ax_gold.axhline(0, color="0.4", linewidth=1)
    ax_gold.set(ylabel="utility of stories", ylim=(FLOOR, BEST + 0.4))
    ax_gold.set_title("RL teaches it to please", fontsize=15)
    ax_gold.annotate(f"reward model\n(part 7) agrees\nwith annotator\nin {100 * chosen['accuracy']:.0f} % of pairs",
                     (1.65, 0.72 * BEST), (0.4, 0.72 * BEST), ha="center", va="center", fontsize=13, linespacing=1.3,
                     arrowprops=dict(arrowstyle="-|>", linewidth=1.5, color=BLACK))
    ax_text.axis("off")
    place, height = 0.97, 0.97 / (len(lines) + 0.5 * (len(shown) - 1))
    for name, text, verdict in lines:
        weight = "normal" if name else "bold"  # a question has no stage
        place -= 0.5 * height * (not name and place < 0.9)
        for x, align, cell in ((0.0, "left", name), (0.075, "left", text), (1.0, "right", verdict)):
            ax_text.text(x, place, cell, color=STAGES[name] if name and cell == name else BLACK, ha=align, va="top",
                         fontsize=13, family="monospace", weight="bold" if cell == name else weight, parse_math=False)
        place -= height
    print(save_figure(
        fig, figure_path(__file__, "chain", config.quick), title="What each stage of the chain has gained",
        caption=f"Left: tasks of {len(EXACT)} families answered rightly, greedily, {config.n_tasks} held-out ones of each. "
                f"Right: utility of the stories told to {config.n_stories} held-out prompts, sampled at temperature 1, as "
                "the annotator behind the preferences counts it; best possible: a happy ending that names the thing, in few "
                "words. The base model does not know the template and never ends: its bar goes on below the axis. The "
                f"reward model is asked about {chosen['n']} pairs of held-out prompts. Whiskers: 95 % bootstrap intervals. "
                "Below: the same two held-out prompts, answered greedily by all; a story's utility, or the verifier's "
                "verdict.", command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
