"""Lesson 8.4 - which lambda?

In a language small enough to list, the true advantage of every token is known, and so are the expectation and the variance
of its estimate: nothing is drawn but the critics' errors. What to see: with a critic that errs, the estimate's error over
lambda is U-shaped, bias to the left and variance to the right; an exact critic is best at lambda 0. For the gradient of a
batch the best lambda grows with the number of answers, as only the variance averages out.

Not counted as bias is what all tokens of a state share: it pulls none of them up against another, and so does not turn the
gradient on average. In the gradient's variance, right, it does count.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, figure_path, plt, save_figure
from part_8.gae import generalised_advantages
from part_8.toy_language import TablePolicy, ToyLanguage

STYLES = ((BLACK, "-"), (BLUE, "--"), (ORANGE, "-."), (GREEN, ":"))


@dataclass(frozen=True)
class Config:
    length: int = option(8, "most tokens of an answer; 2 ** (length + 1) - 1 answers are listed")
    error: float = option(0.9, "standard deviation of a critic's errors, where scores have 1; another one errs by a third")
    n_draw: int = option(20, "critics of each kind, for the mean square of their errors")
    n_lambda: int = option(41, "values of lambda, from 0 to 1")
    seed: int = option(0, "of policy, scores and errors")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(length=4, n_draw=2, n_lambda=6)

    def __post_init__(self):
        check_positive(self, "length", "error", "n_draw")
        if self.n_lambda < 2:
            raise InputError(f"--n_lambda must be at least 2, not {self.n_lambda}")


class World:
    """All answers of a language with their probabilities and scores, and what is true of each of the S states.

    probabilities: (N,); rewards, states, mask: (N, T); true_values: (S,); true_advantages, true_gradient: (S, V).
    """

    def __init__(self, length, seed):
        language = ToyLanguage(3, length)
        policy = TablePolicy(language, seed)
        with torch.no_grad():
            policy.logits[:, language.end] -= 3  # long answers, so that there is something to look ahead to
            self.probabilities, pi = policy.probabilities(), policy.logits.softmax(-1)
        self.states, self.mask, tokens = language.states, language.mask, F.one_hot(language.tokens, 3)
        worth = torch.randn(pi.shape, generator=torch.Generator().manual_seed(seed + 100))
        scores = torch.where(self.mask, worth[self.states, language.tokens], 0.0).sum(1)  # of all tokens, paid at the end
        scores = scores - self.probabilities @ scores
        scores = scores / (self.probabilities @ scores**2).sqrt()
        last = self.mask.sum(1, keepdim=True) - 1
        self.rewards = torch.zeros(self.mask.shape).scatter(1, last, scores[:, None])
        self.pi, self.pairs = pi, self.probabilities[:, None, None] * tokens * self.mask[..., None]  # (N, T, V)
        self.reached = self.sums(self.pairs)
        to_go = self.sums(self.pairs * scores[:, None, None])
        self.true_values = to_go.sum(1) / self.reached.sum(1)
        self.true_advantages = to_go / self.reached - self.true_values[:, None]
        self.score = (tokens - pi[self.states]) * self.mask[..., None]  # d log pi(token) / d logits of its state
        self.true_gradient = pi * self.reached.sum(1, keepdim=True) * self.true_advantages

    def sums(self, x):
        """The sum of x, (N, T, V), over all places of each state: (S, V)."""
        return torch.zeros_like(self.pi).index_add(0, self.states.flatten(), x.flatten(0, 1))

    def errors(self, values, lam):
        """Squared bias and variance of the advantage, a mean over tokens as they come, and of one answer's gradient, summed
        over all logits: (4,). values: (S,) of the critic."""
        advantages, _ = generalised_advantages(self.rewards, values[self.states], self.mask, lam=lam)
        mean, square = (self.sums(self.pairs * x[..., None]) / self.reached for x in (advantages, advantages**2))
        bias = mean - self.true_advantages
        bias = bias - (self.pi * bias).sum(1, keepdim=True)
        share = self.reached / self.reached.sum()
        one = advantages[..., None] * self.score  # each state has rows of its own, so an answer's squares add up
        gradient = self.sums(self.probabilities[:, None, None] * one)
        return torch.stack([(share * bias**2).sum(), (share * (square - mean**2)).sum(),
                            ((gradient - self.true_gradient)**2).sum(),
                            self.probabilities @ (one**2).sum((1, 2)) - (gradient**2).sum()])


def main(config):
    world, generator = World(config.length, config.seed), torch.Generator().manual_seed(config.seed)
    lambdas, exact = torch.linspace(0, 1, config.n_lambda), world.true_values
    noise = torch.randn(config.n_draw, len(exact), generator=generator)
    critics = {"exact": exact[None], **{f"errors of {error:g}": exact + error * noise for error in
                                        (config.error / 3, config.error)}, "V = 0": torch.zeros_like(exact)[None]}
    results = {name: torch.stack([torch.stack([world.errors(one, lam.item()) for one in own]).mean(0) for lam in lambdas])
               for name, own in critics.items()}  # (n_lambda, 4)

    fig, (ax_parts, ax_critics, ax_gradient) = plt.subplots(1, 3, figsize=(13, 4.8))
    small, large = list(critics)[1:3]
    print(f"{len(world.probabilities)} answers of {world.reached.sum():.1f} tokens on average; advantages' spread "
          f"{((world.reached * world.true_advantages**2).sum() / world.reached.sum()).sqrt():.3f}")
    print(f"{'error of the advantage, critic':>32s}   best lambda   lambda 0       best   lambda 1")
    for (name, own), (color, line) in zip(results.items(), STYLES):
        error = own[:, :2].sum(1).sqrt()
        ax_critics.plot(lambdas, error, color=color, linestyle=line, label=name)
        best = error.argmin()
        ax_critics.plot(lambdas[best], error[best], "o", color=color)
        print(f"{name:>32s}{lambdas[best]:14.3f}{error[0]:11.3f}{error[best]:11.3f}{error[-1]:11.3f}")
    bias, variance = results[large][:, :2].T
    for label, square, color, line in (("bias", bias, BLUE, "--"), ("standard deviation", variance, ORANGE, "-."),
                                       ("both: error", bias + variance, BLACK, "-")):
        ax_parts.plot(lambdas, square.clamp(min=0).sqrt(), color=color, linestyle=line, label=label)
    print(f"{'error of the gradient, answers':>32s}   (critic: {small})")
    gradient_bias, gradient_variance = results[small][:, 2:].T
    for n, (color, line) in zip((4, 16, 64, 256), STYLES):
        error = ((gradient_bias + gradient_variance / n) / (world.true_gradient**2).sum()).sqrt()
        ax_gradient.plot(lambdas, error, color=color, linestyle=line, label=f"{n} answers")
        best = error.argmin()
        ax_gradient.plot(lambdas[best], error[best], "o", color=color)
        print(f"{n:32d}{lambdas[best]:14.3f}{error[0]:11.3f}{error[best]:11.3f}{error[-1]:11.3f}")
    ax_parts.set(xlabel="lambda", ylabel="error (scores have spread 1)", title=f"advantage, {large}", ylim=(0, None))
    ax_critics.set(xlabel="lambda", ylabel="error (scores have spread 1)", title="advantage, by critic", ylim=(0, None))
    ax_gradient.set(xlabel="lambda", ylabel="error / length of the gradient", title=f"gradient of a batch, {small}",
                    ylim=(0, 1.25 * ax_gradient.get_ylim()[1]))  # room for the legend
    for ax, columns in ((ax_parts, 1), (ax_critics, 1), (ax_gradient, 2)):
        ax.legend(ncols=columns)
    print(save_figure(
        fig, figure_path(__file__, "gae", config.quick), title="Bias and variance over lambda, exactly",
        caption=f"Root mean squares over all {len(world.probabilities)} answers of a small language, each with its "
                "probability. Left: bias and standard deviation of the advantage, with a critic whose values are wrong by "
                f"{config.error:g} (standard deviation; {config.n_draw} such critics). Middle: both together, for four "
                f"critics; dots: the lowest. Right: both for the policy gradient of a batch, with {small}: the more "
                "answers, the less the variance counts beside the bias, and the larger the best lambda.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
