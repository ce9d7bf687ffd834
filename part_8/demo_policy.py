"""Lesson 8.1 - can a critic know, while an answer is still being told, how it will be judged?

The fine-tuned model tells stories and does not learn. Three critics read the same stories and learn V(s_t), the reward
model's score that is to be expected after the words so far: a copy of the policy, the reward model's encoder, and a value
head alone on the policy's frozen hidden states. Policy and reward model are at hand, so the truth can be sampled: go on from
s_t many times and take the mean score. What to see: how much of the scores' variance each critic explains, and how much any
critic could (dashed); and in two stories, at which words the verdict falls, and which critics notice.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, figure_path, plt, save_figure
from part_2.optimization import parameter_groups
from part_6.sft_config import RUNS as SFT_RUNS
from part_7.reward_config import RUNS as REWARD_RUNS
from part_7.reward_model import load_reward_model
from part_8.policy import CRITICS, build_actor_critic
from part_8.ppo_loss import value_loss
from part_8.prompts import TASKS, load_prompts
from part_8.rewards import score_rollout
from part_8.rollout import as_rollout, collect
from part_8.stability import explained_variance
from part_8.stages import load_fine_tuned

STYLES = {"policy": (BLUE, "-"), "reward": (ORANGE, "--"), "shared": (GREEN, ":")}


@dataclass(frozen=True)
class Config:
    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "the policy, a checkpoint of part_6/train_sft.py")
    reward_model: str = option(str(REWARD_RUNS / "reward_model" / "best.pt"),
                               "the judge, a checkpoint of part_7/train_reward_model.py")
    steps: int = option(16, "batches of stories, each learnt from once")
    batch_size: int = option(64, "stories a step")
    block_size: int = option(40, "most tokens of a story")
    lr: float = option(3e-3, "learning rate of the critics")
    eval_every: int = option(4, "steps between measurements")
    n_held_out: int = option(256, "stories to measure on, none of which is learnt from")
    n_more: int = option(32, "times that the two stories are continued from each word, for the truth")
    seed: int = option(1, "seed of prompts and samples")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"),
                                 reward_model=str(REWARD_RUNS / "quick" / "best.pt"), steps=4, batch_size=8, block_size=12,
                                 eval_every=2, n_held_out=12, n_more=2)

    def __post_init__(self):
        check_positive(self, "steps", "batch_size", "block_size", "lr", "eval_every", "n_held_out", "n_more")


def values(model, tokens):
    """V of each choice, (B, T - 1), as ActorCritic gives it, without the logits that nobody needs here."""
    return model.value((model.critic or model.policy).hidden_states(tokens))[:, :-1, 0]


def continued(policy, reward_model, prompts, answers, n, n_new, stop_ids, generator, every=1):
    """Scores of answers that are continued from s_0, s_every ... by the policy: for each answer (so many states, n).
    prompts, answers: lists of ids."""
    states = [(i, t) for i, answer in enumerate(answers) for t in range(0, len(answer), every) for _ in range(n)]
    scores = []
    for start in range(0, len(states), 256):
        part = states[start:start + 256]
        more = collect(policy, [prompts[i] + answers[i][:t] for i, t in part], n_new, stop_ids, generator=generator)
        whole = [(answers[i][:t] + ids)[:n_new] for (i, t), ids in zip(part, more.answers())]
        scores.append(score_rollout(reward_model, as_rollout([prompts[i] for i, _ in part], whole, stop_ids[0])))
    return [x.view(-1, n) for x in torch.cat(scores).split([-(-len(answer) // every) * n for answer in answers])]


def train_critic(model, batches, held_out, config):
    """Let only the critic learn, and every some steps measure: a list of explained variances. batches: of (rollout, scores),
    and held_out one of them; the score is each token's return, as there is neither a KL penalty nor a discount."""
    model.policy.requires_grad_(False)
    critic, (test, test_scores), explained = model.learners()[1], held_out, []
    optimizer = torch.optim.AdamW(parameter_groups(critic, 0.0), config.lr, betas=(0.9, 0.95))
    for step, (rollout, scores) in enumerate([*batches, held_out]):
        if step % config.eval_every == 0 or step == config.steps:
            with torch.no_grad():
                explained.append(explained_variance(values(model, test.tokens)[test.mask],
                                                    test_scores[:, None].expand(test.mask.shape)[test.mask]))
        if step < config.steps:
            own = values(model, rollout.tokens)
            value_loss(own, own.detach(), scores[:, None], rollout.mask).backward()
            torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return explained


def draw_story(ax, prompt, story, score, truth, models, tokenizer):
    """V after each token. prompt, story: ids; truth: (tokens, n) scores of what the same beginnings may become."""
    for kind, model in models.items():
        with torch.no_grad():
            own = values(model, torch.tensor([prompt + story]))[0, len(prompt) - 1:]
        print(f"{kind:8s}" + "".join(f"{x:7.2f}" for x in own))
        ax.plot(own, color=STYLES[kind][0], linestyle=STYLES[kind][1], label=kind)
    error = 2 * truth.std(1, correction=0) / truth.shape[1] ** 0.5
    ax.errorbar(range(len(story)), truth.mean(1), error, color=BLACK, fmt="o", markersize=4, linewidth=1,
                label="truth, sampled")
    ax.plot(len(story), score, "*", color=BLACK, markersize=14)
    ax.set_xticks(range(len(story) + 1), ["(prompt)", *(tokenizer.decode([id]).strip() for id in story)], rotation=45,
                  ha="right", rotation_mode="anchor", fontsize=10, parse_math=False)
    ax.set(ylabel="V (reward)", title=f"a story with the score {score:.2f} (star)")


def main(config):
    policy, tokenizer, stop_ids = load_fine_tuned(config.sft)
    reward_model = load_reward_model(config.reward_model)[0]
    prompts, test = ([one.ids for one in load_prompts(TASKS, split, n, config.seed, ("story",), tokenizer)]
                     for split, n in (("rl", config.steps * config.batch_size), ("test", config.n_held_out)))
    generator = torch.Generator().manual_seed(config.seed)
    batches = []
    for start in (*range(0, len(prompts), config.batch_size), None):  # the held-out ones last
        part = test if start is None else prompts[start:start + config.batch_size]
        rollout = collect(policy, part, config.block_size, stop_ids, generator=generator)
        batches.append((rollout, score_rollout(reward_model, rollout)))
    held_out, scores, stories = batches[-1], batches[-1][1], batches[-1][0].answers()
    returns = scores.repeat_interleave(torch.tensor([len(story) for story in stories]))  # of every token
    told = torch.cat([torch.arange(len(story)) / len(story) for story in stories])  # the share of its story before it
    # A story and the same beginning continued once are two draws of the score after s_t: half their squared difference has
    # the mean Var(score | s_t), which nothing that looks at s_t alone can explain. Every second s_t is enough.
    again = torch.cat(continued(policy, reward_model, test, stories, 1, config.block_size, stop_ids, generator, every=2))
    seconds = torch.cat([torch.arange(len(story)) % 2 == 0 for story in stories])
    noise = torch.full_like(returns, torch.nan)
    noise[seconds] = (again[:, 0] - returns[seconds]) ** 2 / 2

    models = {kind: build_actor_critic(config.sft, kind, config.reward_model) for kind in CRITICS}
    curves = {kind: train_critic(model, batches[:-1], held_out, config)
              for kind, model in tqdm(models.items(), unit="critic", disable=None)}
    with torch.no_grad():
        ends = {kind: values(model, held_out[0].tokens)[held_out[0].mask] for kind, model in models.items()}
    at = [step for step in range(config.steps + 1) if step % config.eval_every == 0 or step == config.steps]
    fifths = [(told >= i / 5) & (told < (i + 1) / 5) for i in range(5)]
    best, *best_of_fifths = (1 - (noise[part].nanmean() / returns[part].var(correction=0)).item()
                             for part in (torch.ones_like(told, dtype=torch.bool), *fifths))
    by_fifths = {kind: [explained_variance(own[part], returns[part]) for part in fifths] for kind, own in ends.items()}
    print(f"explained variance on {len(test)} held-out stories, {len(returns)} tokens; last by fifths of a story\n"
          f"{'after steps':12s}" + "".join(f"{step:7d}" for step in at) + "  |" + "".join(f"{i:6d}." for i in range(1, 6)))
    for kind in CRITICS:
        print(f"{kind:12s}" + "".join(f"{x:7.3f}" for x in curves[kind]) + "  |" + "".join(
            f"{x:7.3f}" for x in by_fifths[kind]))
    print(f"{'at most':12s}" + " " * 7 * (len(at) - 1) + f"{best:7.3f}  |" + "".join(f"{x:7.3f}" for x in best_of_fifths))

    fig, ((ax_steps, ax_good), (ax_place, ax_bad)) = plt.subplots(2, 2, figsize=(10.4, 6.6), width_ratios=(2, 3))
    for ax, x, lines, limit in ((ax_steps, at, curves, [best] * len(at)),
                                (ax_place, range(1, 6), by_fifths, best_of_fifths)):
        ax.plot(x, limit, color=BLACK, linestyle="-.", label="at most")
        for kind, line in lines.items():
            ax.plot(x, line, color=STYLES[kind][0], linestyle=STYLES[kind][1], marker="o", markersize=4, label=kind)
        ax.set_ylabel("explained variance of the score")
    ax_steps.set(xlabel=f"batches of {config.batch_size} stories learnt from", title=f"{len(test)} held-out stories")
    ax_place.set(xlabel="fifth of the story that is being told", xticks=range(1, 6), title="the same at the end, by place")
    ax_place.legend()
    order = scores.argsort().tolist()
    pair = order[-1], order[0]
    truths = continued(policy, reward_model, [test[i] for i in pair], [stories[i] for i in pair], config.n_more,
                     config.block_size, stop_ids, generator)
    for ax, i, truth in zip((ax_good, ax_bad), pair, truths):
        print(f"score {scores[i]:.2f}: {tokenizer.decode(test[i] + stories[i])}\n"
              f"{'truth':8s}" + "".join(f"{x:7.2f}" for x in truth.mean(1)))
        draw_story(ax, test[i], stories[i], scores[i].item(), truth, models, tokenizer)
    ax_good.legend(loc="upper left", fontsize=10)
    print(save_figure(
        fig, figure_path(__file__, "policy", config.quick), title="What a critic can know before the verdict",
        caption=f"Left: the share of the score's variance that V explains, {len(test)} stories of the fine-tuned model; "
                f"above while the critics learn from {config.steps} batches of {config.batch_size}, below afterwards, by "
                "how much of the story is told. Dash-dotted: the most that can be known after these words, here about "
                f"{best:.2f} over all. At the end: " + ", ".join(f"{kind} {curve[-1]:.2f}" for kind, curve in curves.items())
                + ". Right: V after each token of the held-out stories with the highest and the lowest score; dots: mean "
                f"score of {config.n_more} ways in which the policy goes on from there, with two standard errors.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
