"""Lesson 9.5 - what do the classic mistakes of this part look like?

In the language of 31 answers, where everything can be listed: a policy that has left its reference descends on the estimate
of the divergence alone, as it should be (importance-weighted k3) and with k1 in its place. Then answers to prompts of unlike
difficulty get their advantages, within each group and whitened over the whole batch. What to see: left, a penalty that pulls
nowhere; middle, advantages that tell which prompt was easy; right, gradients that agree less with the exact one. Neither
mistake raises an error.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import BLUE, RED, band, figure_path, plt, save_figure
from part_8.toy_language import TablePolicy, ToyLanguage
from part_9.bugs import BUGS
from part_9.demo_kl import FORMS, descend, exact_figures, moved
from part_9.group_advantage import group_advantages

K1, ACROSS = BUGS
RIGHT, WRONG = dict(color=BLUE, linestyle="-", label="right"), dict(color=RED, linestyle="--", label="wrong")
FORM = "weighted k3"  # whose expected gradient is that of KL(pi || ref)


@dataclass(frozen=True)
class Config:
    start: float = option(1.5, "how far the logits are from the reference's at first (standard deviation)")
    steps: int = option(200, "steps of descent on the penalty alone")
    batch_size: int = option(64, "answers of a step")
    lr: float = option(0.3, "learning rate of the descent")
    n_seed: int = option(3, "runs of descent")
    n_prompts: int = option(64, "prompts there are")
    level: float = option(2.0, "spread of the prompts' mean rewards; of the answers to one it is 1")
    n_answers: int = option(64, "answers of a batch whose advantages are looked at; a power of 2")
    n_shown: int = option(8, "answers to a prompt where single prompts are drawn; a power of 2")
    n_rounds: int = option(1000, "such batches")
    seed: int = option(0, "of policies, rewards and samples")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=5, n_seed=2, n_answers=16, n_rounds=20)

    def __post_init__(self):
        check_positive(self, "start", "steps", "batch_size", "lr", "n_seed", "n_prompts", "level", "n_rounds")
        if self.n_answers < 4 or self.n_answers & (self.n_answers - 1):
            raise InputError(f"--n_answers must be a power of 2, at least 4, not {self.n_answers}")
        if not 2 <= self.n_shown < self.n_answers or self.n_shown & (self.n_shown - 1):
            raise InputError(f"--n_shown must be a power of 2, at least 2 and below --n_answers {self.n_answers}, not "
                             f"{self.n_shown}")


def penalty(config):
    """Of the loss that FORM names: its expected gradient's part along that of KL(pi || ref), in that one's lengths, and the
    divergence along a descent on it, one list a seed."""
    reference = TablePolicy(ToyLanguage(), config.seed)
    direction = torch.randn(reference.logits.shape, generator=torch.Generator().manual_seed(config.seed + 100))
    ref = moved(reference, direction, 0.0).probabilities().detach().log()
    along = exact_figures(moved(reference, direction, config.start), ref)[1][list(FORMS).index(FORM)][2]
    return along, [descend(moved(reference, direction, config.start), ref, *FORMS[FORM][:2], config, config.seed + 1 + i)
                   for i in range(config.n_seed)]


def batches(p, scores, tables, G, config):
    """Batches of n answers, G to a prompt. p: (N,) probabilities of the answers; scores: (N, W), the gradients of their
    logarithms; tables: (P, N) rewards. Returns each answer's prompt and advantage, (n_rounds, n), and the mean cosine of a
    batch's gradient with the exact one."""
    set_seed(config.seed)
    rounds, n = config.n_rounds, config.n_answers
    prompts = torch.randint(len(tables), (rounds, n // G)).repeat_interleave(G, 1)
    rows = torch.multinomial(p, rounds * n, replacement=True).view(rounds, n)
    advantages = torch.stack([group_advantages(rewards, G) for rewards in tables[prompts, rows]])
    gradients = torch.zeros(rounds, len(p), dtype=p.dtype).scatter_add(1, rows, advantages) @ scores  # (n_rounds, W)
    exact = (tables * p).mean(0) @ scores
    return prompts, advantages, torch.cosine_similarity(gradients, exact[None]).mean().item()


def main(config):
    set_seed(config.seed)
    policy = TablePolicy(ToyLanguage(), config.seed).double()
    p = policy.probabilities()
    scores = torch.stack([torch.autograd.grad(one.log(), policy.logits, retain_graph=True)[0].flatten() for one in p])
    p = p.detach()
    levels = config.level * torch.randn(config.n_prompts, 1)
    tables = torch.randn(len(p)).double() + levels  # prompts differ in their level alone, so the exact gradient is one
    worth, sizes = tables @ p, [2**i for i in range(1, config.n_answers.bit_length())]
    pulls, drawn = [], []
    for is_wrong in (False, True):
        with K1.installed() if is_wrong else nullcontext():
            pulls.append(penalty(config))
        with ACROSS.installed() if is_wrong else nullcontext():
            drawn.append({G: batches(p, scores, tables, G, config) for G in sizes})

    fig, (ax_course, ax_prompt, ax_cosine) = plt.subplots(1, 3, figsize=(13, 4.6))
    told, correlations = [], []
    for (along, courses), own, style in zip(pulls, drawn, (RIGHT, WRONG)):
        prompts, advantages, cosine = own[config.n_shown]
        correlations.append(np.corrcoef(worth[prompts.flatten()], advantages.flatten())[0, 1])
        told.append((f"the gradient's part along that of KL(pi || ref) is {abs(along):.2f}; KL {courses[0][0]:.2f} -> "
                     + ", ".join(f"{one[-1]:.2f}" for one in courses) + f" after {config.steps} steps",
                     f"correlation of an answer's advantage with its prompt's mean reward {abs(correlations[-1]):.2f}, "
                     f"cosine of a batch's gradient with the exact one {cosine:.2f}"))
        band(ax_course, range(config.steps + 1), courses, **style)
        order = [i for i in worth.argsort().tolist() if (prompts == i).any()]
        ax_prompt.plot(worth[order], [advantages[prompts == i].mean() for i in order], marker=".", **style)
        ax_cosine.plot(sizes, [cosine for *_, cosine in own.values()], marker="o", **style)
    for bug, texts in zip(BUGS, zip(*told)):
        print(bug.describe(*texts))
    ax_course.set(xlabel="steps of descent", ylabel="KL(pi || ref) (nats)", ylim=(0, None),
                  title="k1 in the loss: the penalty alone")
    ax_prompt.set(xlabel="mean reward of a prompt", ylabel="mean advantage of its answers",
                  title="whitened across groups: by prompt")
    ax_cosine.set(xlabel="answers to a prompt, G", ylabel="cosine with the exact gradient", xscale="log", ylim=(0, 1.02),
                  title=f"... and its gradient, {config.n_answers} answers", xticks=sizes, xticklabels=sizes)
    ax_cosine.minorticks_off()
    for ax in (ax_course, ax_prompt, ax_cosine):
        ax.legend()
    right, wrong = (np.mean([one[-1] for one in courses]) for _, courses in pulls)
    print(save_figure(
        fig, figure_path(__file__, "bugs", config.quick), title="Two mistakes of Part 9 beside the right run",
        caption=f"A language of {len(p)} answers. Left: descent on the penalty alone, importance-weighted k3 (right) or k1 "
                f"(wrong), mean and range of {config.n_seed} seeds; the divergence comes to {right:.2f} or {wrong:.2f} nats "
                f"(means). Middle: {config.n_shown} answers to each prompt, advantages normalised within the groups or over "
                f"the whole batch of {config.n_answers}; their correlation with the prompt's mean reward is "
                f"{abs(correlations[0]):.2f} or {correlations[1]:.2f}. Right: cosine of a batch's gradient with the exact "
                f"one, mean of {config.n_rounds:,} batches; with all answers to one prompt there is but one group.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
