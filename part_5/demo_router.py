"""Lesson 5.1 - how does a token choose its experts, what says that the load is uneven, and what evens it out?

Trains nothing: logits are drawn, and router.py and balancing.py applied to them. What to see: the chosen experts' weights
depend on the score and on renormalising, the choice does not; the balance loss has its minimum, 1, where all experts get the
same; and a bias that a simple rule moves once a step makes a skewed router even, without a gradient.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import BLUE, ORANGE, figure_path, heatmap, plt, save_figure
from part_5.balancing import expert_load, load_balancing_loss, load_entropy, max_violation, router_z_loss, updated_bias
from part_5.router import route


@dataclass(frozen=True)
class Config:
    n_expert: int = option(8, "experts E")
    top_k: int = option(2, "experts that a token chooses K")
    n_tokens: int = option(1024, "tokens of a batch")
    rate: float = option(0.005, "what the bias moves by in a step")
    n_steps: int = option(150, "steps of the bias")
    seed: int = option(0, "seed of the logits")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_tokens=64, n_steps=50)

    def __post_init__(self):
        check_positive(self, "n_expert", "n_tokens", "rate", "n_steps")
        if not 1 <= self.top_k <= self.n_expert:
            raise InputError(f"--top_k must be from 1 to --n_expert {self.n_expert}, not {self.top_k}")


def weights_of_all(routing):
    """The first token's weights with NaN for experts that it did not choose: (E,)."""
    return torch.full_like(routing.logits[0], float("nan")).scatter(0, routing.experts[0], routing.weights[0])


def figures_of(logits, top_k):
    """Balance loss, load entropy, max violation and z-loss of a batch of logits (N, E): four numbers."""
    routing = route(logits, top_k)
    loss, load = load_balancing_loss(routing.probabilities, routing.experts), expert_load(routing.experts, logits.shape[1])
    return torch.stack((loss, load_entropy(load), max_violation(load), router_z_loss(logits))).tolist()


def shares_with_bias(config):
    """Each expert's share of the choices while its bias is moved, every step a new batch: (n_steps, E)."""
    favour, bias, shares = torch.randn(config.n_expert), torch.zeros(config.n_expert), []
    for _ in range(config.n_steps):
        logits = torch.randn(config.n_tokens, config.n_expert) + favour
        load = expert_load(route(logits, config.top_k, "sigmoid", bias=bias).experts, config.n_expert)
        bias = updated_bias(bias, load, config.rate)
        shares.append(load / load.sum())
    return torch.stack(shares)


def main(config):
    set_seed(config.seed)
    E, K, skews = config.n_expert, config.top_k, range(-16, 17)
    logits, drawn = torch.randn(1, E), torch.randn(config.n_tokens, E)
    fig, (ax_token, ax_loss, ax_bias) = plt.subplots(1, 3, figsize=(14, 4.6), width_ratios=(5, 4, 4))
    rows = {"softmax": route(logits, E, renormalise=False), "its K largest": route(logits, K, renormalise=False),
            "renormalised": route(logits, K), "sigmoid": route(logits, E, "sigmoid", renormalise=False),
            "its K largest,\nrenormalised": route(logits, K, "sigmoid")}
    few = dict(fmt="{:.2f}", xticks=[f"{i}\n{z:.1f}" for i, z in enumerate(logits[0])]) if E <= 10 else {}  # room for text
    heatmap(ax_token, torch.stack([weights_of_all(routing) for routing in rows.values()]), yticks=rows, ylabel="",
            xlabel="expert, and its logit" if few else "expert", cmap="Blues", vmin=0, vmax=1.3, **few)
    ax_token.set_title(f"one token's weights, K = {K}")
    tokens = torch.cat([drawn.roll(i, dims=1) for i in range(E)])  # each shifted round: without skew all is exactly even
    for k, color, line in zip(sorted({1, K}), (BLUE, ORANGE), ("-", "--")):
        figures = [figures_of(tokens + skew * torch.linspace(-1, 1, E), k) for skew in skews]
        ax_loss.plot(skews, [loss for loss, *_ in figures], line, color=color, label=f"K = {k}")
        for skew in (0, 1, 4, 16):
            print("K {}, skew {:2}: balance loss {:.3f}, load entropy {:.3f}, max violation {:.2f}, z-loss {:.1f}".format(
                k, skew, *figures[skews.index(skew)]))
    ax_loss.axhline(1, color="black", linestyle=":")
    ax_loss.set(xlabel="skew of the logits", ylabel="balance loss", title="1 at balance", ylim=(0, None))
    ax_loss.legend()
    shares = shares_with_bias(config)
    ax_bias.set_prop_cycle(color=plt.colormaps["viridis"](torch.linspace(0, 0.9, E).tolist()))
    ax_bias.plot(shares[:, shares[0].argsort()], linewidth=1.2)
    ax_bias.axhline(1 / E, color="black", linestyle=":")
    ax_bias.set(xlabel="step", ylabel="share of the choices", title="a bias evens out the load", ylim=(0, None))
    start, end = (1 + max_violation(part.mean(dim=0)) for part in (shares[:1], shares[-len(shares) // 5:]))
    print(f"bias: the busiest expert has {start:.2f} times the mean load at first, {end:.2f} averaged over the last fifth")
    path = save_figure(
        fig, figure_path(__file__, "router", config.quick), title="Choosing experts, and an even load",
        caption=f"Left: one token's weights for {E} experts, of which it uses {K}. Middle: the balance loss where all "
                "tokens favour the last experts (right) or the first (left); 1, dotted, at an even load. Right: shares of "
                f"the choices, with biases that move by {config.rate:g} a step, up below the mean load (dotted): the "
                f"busiest expert has {start:.2f} times the mean at first, {end:.2f} times averaged over the last fifth.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
