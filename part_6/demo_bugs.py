"""Lesson 6.2 - what do the classic mistakes of this part look like?

Fine-tunes the base model for some steps on conversations of unlike length, one a row: as it should be, and with each of the
mistakes of part_6/bugs.py put in place of the right function while the batches are made. What to see: the logged losses
(left) are of unlike tokens, and both wrong ones look better than the right one; held-out answers (middle) tell. Right: what
is learnt instead; and that with padding counted, empty places alone make the loss of the same conversations smaller.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.device import grad_scaler, set_seed
from part_0.plotting import BLUE, RED, figure_path, plt, save_figure
from part_2.loss import token_losses
from part_4.grad_accumulation import accumulate_gradients, clipped_update
from part_4.optimizer import build_optimizers
from part_6.bugs import BUGS
from part_6.chat_model import load_model, resize_vocabulary
from part_6.collator import IGNORE, collate, pad, shift
from part_6.prompt_template import chat_tokenizer, encode_chat
from part_6.sft_config import BASE_RUNS
from part_6.sft_data import task_conversation
from part_6.tasks import make_tasks

PROMPT, PADDING = BUGS
RIGHT, WRONG = dict(color=BLUE, linestyle="-", label="right"), dict(color=RED, linestyle="--", label="wrong")


@dataclass(frozen=True)
class Config:
    base: str = option(str(BASE_RUNS / "train" / "best.pt"), "the base model, a checkpoint of part_4/train.py")
    n_val: int = option(48, "held-out tasks whose losses are measured")
    steps: int = option(40, "optimizer steps of each run")
    batch_size: int = option(8, "conversations a step")
    eval_every: int = option(8, "steps between evaluations")
    lr: float = option(0.01, "learning rate, of Muon")
    seed: int = option(1, "of tasks and new weights")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(base=str(BASE_RUNS / "quick" / "best.pt"), n_val=8, steps=2, batch_size=4, eval_every=1)

    def __post_init__(self):
        check_positive(self, "n_val", "steps", "batch_size", "eval_every", "lr")


@torch.no_grad()
def mean_loss(model, batch):
    """The mean loss of a Batch's targets, a float in nats."""
    kept = batch.targets != IGNORE
    logits = model(batch.inputs, batch.positions, segments=batch.segments)
    return token_losses(logits[kept], batch.targets[kept]).mean().item()


def fine_tune(base, n_tokens, batches, held_out, config):
    """The model after a step with each Batch, the loss of each, after which steps the held-out Batches were measured, and
    the losses of each of these."""
    set_seed(config.seed)
    model = resize_vocabulary(base, n_tokens).train()
    optimizers = build_optimizers(model, "muon", config.lr, 0.95, 0.1)
    scaler = grad_scaler(torch.device("cpu"), torch.float32)
    logged, seen = [], []
    for step, batch in enumerate(tqdm(batches, unit="step", disable=None)):
        loss = accumulate_gradients(model, batch.inputs, batch.targets,
                                    context={"positions": batch.positions, "segments": batch.segments}).item()
        clipped_update(model, optimizers, scaler, 1.0, loss)
        logged.append(loss)
        if (step + 1) % config.eval_every == 0 or step + 1 == len(batches):
            seen.append([step + 1, *(mean_loss(model, one) for one in held_out)])
    return model, logged, *zip(*seen)


def main(config):
    base, tokenizer, _ = load_model(config.base, trainer="part_4/train.py")
    tokenizer = chat_tokenizer(tokenizer)
    tasks = make_tasks("train", config.steps * config.batch_size, config.seed)
    held_out = [encode_chat(task_conversation(task), tokenizer) for task in make_tasks("val", config.n_val)]
    answers, questions = (pad([shift(ids, [is_learnt == wanted for is_learnt in learnt]) for ids, learnt in held_out])
                          for wanted in (True, False))
    widths = range(answers.inputs.shape[1], 3 * answers.inputs.shape[1], 8)
    runs = {}
    for name, bug in {"right": None, "prompt": PROMPT, "padding": PADDING}.items():
        with bug.installed() if bug else nullcontext():
            examples = [shift(*encode_chat(task_conversation(task), tokenizer)) for task in tasks]
            batches = [pad(examples[i:i + config.batch_size]) for i in range(0, len(examples), config.batch_size)]
            own = [shift(*one) for one in held_out[:8]]
            wider = [collate(own, [[i] for i in range(len(own))], width) for width in widths]
        model, logged, measured, on_answers, on_questions = fine_tune(base, tokenizer.vocab_size, batches,
                                                                      (answers, questions), config)
        runs[name] = dict(logged=logged, answers=on_answers, questions=on_questions,
                          wider=[mean_loss(model, batch) for batch in wider])
    steps, last = range(1, config.steps + 1), {name: {what: x[-1] for what, x in run.items()} for name, run in runs.items()}

    print(PROMPT.describe(*(
        f"after {config.steps} steps logged {last[name]['logged']:.2f}, held-out answers {last[name]['answers']:.2f}, "
        f"held-out questions {last[name]['questions']:.2f} nats per token" for name in ("right", "prompt"))))
    print(PADDING.describe(*(
        f"after {config.steps} steps logged {last[name]['logged']:.2f}, held-out answers {last[name]['answers']:.2f}; rows "
        f"of {widths[0]} places {runs[name]['wider'][0]:.2f}, of {widths[-1]} {last[name]['wider']:.2f} nats per token"
        for name in ("right", "padding"))))
    fig, axes = plt.subplots(2, 3, figsize=(12, 7.4))
    for row, wrong, bug, third in (
            (axes[0], "prompt", PROMPT, ("questions", measured, "optimizer step", "held-out questions")),
            (axes[1], "padding", PADDING, ("wider", widths, "places of a row", f"{len(own)} held-out conversations"))):
        for ax, (what, x, xlabel, title) in zip(row, (("logged", steps, "optimizer step", f"logged: {bug.name}"),
                                                      ("answers", measured, "optimizer step", "held-out answers"), third)):
            ax.plot(x, runs["right"][what], **RIGHT)
            ax.plot(x, runs[wrong][what], **WRONG)
            ax.set(xlabel=xlabel, ylabel="loss (nats per target)", title=title, ylim=(0, None))
            ax.legend()
    print(save_figure(
        fig, figure_path(__file__, "bugs", config.quick), title="Two mistakes of Part 6 beside the right run",
        caption=f"The base model, fine-tuned for {config.steps} steps of {config.batch_size} conversations, one a row; "
                "above, questions are learnt from, too, below padding. Left: the logged loss, each run's own. Middle: "
                f"held-out answers; after the last step {last['right']['answers']:.2f} nats (right) stand beside "
                f"{last['prompt']['answers']:.2f} and {last['padding']['answers']:.2f}. Right, above: held-out questions, "
                f"which nobody wanted learnt. Right, below: {len(own)} conversations with more and more padding behind "
                "them, read by each run's own model.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
