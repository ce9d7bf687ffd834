"""Lesson 6.4 - talk to a model in the terminal: any checkpoint of the chain.

    python3 part_6/chat.py                                            the fine-tuned model; /help lists the commands
    python3 part_6/chat.py --temperature 0 --prompt "Sort: red cup"   one question, or several: "first|second"
    python3 part_6/chat.py --checkpoint part_4/runs/train/best.pt     a base model goes on with your text

An answer is printed token by token as it is drawn; Ctrl-C stops it, and the chat goes on. The model reads the whole
conversation each time. When that and the answer are longer than it was trained for, the oldest question and its answer are
left out, whole. Questions may come from a pipe, one a line.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import codecs
import contextlib
import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, check_text, option, run_script
from part_0.device import DEVICES, pick_device
from part_2.sampling import check_sampling
from part_3.generate import stream
from part_6.chat_model import TRAINER, load_model
from part_6.prompt_template import END, encode_prompt

RUNS = Path(__file__).resolve().parent / "runs"
HELP = """/reset            forget the conversation
/temperature X    0 takes the best token every time, 1 draws as the model would
/quit             end, as Ctrl-D does; Ctrl-C stops an answer"""


@dataclass(frozen=True)
class Config:
    checkpoint: str = option(str(RUNS / "sft" / "best.pt"), "a checkpoint of any trainer from part_4/train.py on")
    temperature: float = option(0.7, "0 takes the best token every time")
    top_k: int | None = option(None, "draw from the k best tokens; from all if left out")
    top_p: float | None = option(None, "draw from the best tokens that together have this probability; from all if left out")
    n_new: int = option(80, "most tokens of an answer")
    turns: int | None = option(None, "earlier questions that are read with a new one, at most; all that fit if left out")
    system: str = option("", "a message of the system, before the conversation")
    prompt: str = option("", "questions, separated by |, instead of those from the terminal")
    seed: int = option(0, "seed of the draws")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(checkpoint=str(RUNS / "quick" / "best.pt"), prompt="What is 2 + 3?", n_new=8)

    def __post_init__(self):
        check_positive(self, "n_new")
        check_sampling(self.temperature, self.top_k, self.top_p)
        if self.turns is not None and self.turns < 0:
            raise InputError(f"--turns must be 0 or more, not {self.turns}")
        check_text(self, *(name for name in ("system", "prompt") if getattr(self, name)))
        if self.prompt and not all(text.strip() for text in self.prompt.split("|")):
            raise InputError("--prompt must not have an empty question in it")


def fit_history(messages, tokenizer, room, turns=None):
    """The conversation without as many of its oldest turns, question and answer, as must go for `room` tokens.

    messages: a conversation that ends with the user; turns: most that stay before the last question. That and a message of
    the system stay, whether they fit or not. Returns (messages, ids), the ids as of `encode_prompt`.
    """
    n_system = int(messages[0]["role"] == "system")
    most = n_system + 1 + 2 * (len(messages) if turns is None else turns)
    while (len(ids := encode_prompt(messages, tokenizer)) > room or len(messages) > most) and len(messages) > n_system + 1:
        messages = [*messages[:n_system], *messages[n_system + 2:]]
    return messages, ids


def trained_length(model, state):
    """How many tokens the model of a checkpoint was trained to read: what fine-tuning may have made longer, if a table of
    positions does not end there."""
    own = model.config.block_size
    return own if model.config.positions in ("learned", "sinusoidal") else max(own, state["config"].get("block_size", 0))


def whole_characters(ids, tokenizer):
    """The text of ids piece by piece, as they come: the bytes of a character that tokens share wait for its last one.

    ids: an iterable of int. Yields str, none empty; together they are `tokenizer.decode` of all ids.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for id in ids:
        if piece := decoder.decode(tokenizer.decode_bytes([id])):
            yield piece
    if piece := decoder.decode(b"", final=True):
        yield piece


def without_blank(pieces):
    """The pieces of an answer without the blank that belongs to the template."""
    for number, piece in enumerate(pieces):
        yield piece if number else piece.removeprefix(" ")


def draw_ids(model, tokenizer, ids, n_new, temperature, generator, config):
    """Yield the ids of a continuation as they are drawn, up to a special token: that ends a turn, or a base model's text."""
    stops = tokenizer.special_ids.values()
    for step in stream(model, [ids], n_new, temperature, config.top_k, config.top_p, generator, stops):
        if step.item() not in stops:
            yield step.item()


def show(pieces):
    """Print the pieces as they come, until Ctrl-C; control characters but new line and tab as U+FFFD. Returns the text."""
    shown = []
    try:
        with contextlib.closing(pieces):
            for piece in pieces:
                shown.append(piece)
                print("".join("\ufffd" if unicodedata.category(character) == "Cc" and character not in "\n\t" else character
                              for character in piece), end="", flush=True)
    except KeyboardInterrupt:
        print(" ... stopped", end="")
    print(flush=True)
    return "".join(shown)


def read_temperature(text):
    """The number in a text. ValueError unless it is 0 or above."""
    temperature = float(text)
    if not math.isfinite(temperature):
        raise ValueError(text)
    check_sampling(temperature, None, None)
    return temperature


def talk(lines, model, tokenizer, context, config):
    """Answer each line, or do what it commands. Returns the conversation, a list of messages.

    lines: an iterable of str; model, tokenizer: as from `load_model`; context: most tokens to read and write. Without
    template tokens each line is a text to go on with, and no conversation.
    """
    is_chat = END in tokenizer.special_ids
    generator = torch.Generator(model.head.weight.device).manual_seed(config.seed)
    start = [{"role": "system", "content": config.system}] if config.system else []
    messages, temperature = start, config.temperature
    for line in lines:
        command, _, value = line.strip().partition(" ")
        if command == "/quit":
            break
        elif command == "/help":
            print(HELP)
        elif command == "/reset":
            messages = start
            print("the conversation begins anew")
        elif command == "/temperature":
            try:
                temperature = read_temperature(value)
                print(f"the temperature is {temperature:g}")
            except ValueError:
                print(f"/temperature needs a number, 0 or above, not {value!r}")
        elif command.startswith("/"):
            print(f"there is no command {command}; /help lists them")
        elif command:
            if is_chat:
                asked = [*messages, {"role": "user", "content": line.strip()}]
                asked, ids = fit_history(asked, tokenizer, max(context - config.n_new, context // 2), config.turns)
            else:
                ids = tokenizer.encode(line)
            if len(ids) >= context:
                print(f"that is {len(ids)} tokens; the model was trained to read {context}, its answer included")
                continue
            n_new = min(config.n_new, context - len(ids))
            pieces = whole_characters(draw_ids(model, tokenizer, ids, n_new, temperature, generator, config), tokenizer)
            if is_chat:
                messages = [*asked, {"role": "assistant", "content": show(without_blank(pieces))}]
            else:
                show(pieces)
    return messages


def read_lines(prompt):
    """The questions: those of `prompt`, separated by |, else those that the terminal or a pipe gives until its end.

    Where nobody types them they are printed, so that the output is the whole conversation.
    """
    if prompt or not sys.stdin.isatty():
        for line in prompt.split("|") if prompt else sys.stdin:
            print(f"> {line.rstrip()}")
            yield line.rstrip()
        return
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 - with it `input` can edit a line and call earlier ones back
    with contextlib.suppress(EOFError):  # Ctrl-D
        while True:
            yield input("> ")


def main(config):
    model, tokenizer, state = load_model(config.checkpoint, pick_device(config.device))
    context = trained_length(model, state)
    if hasattr(sys.stdin, "reconfigure"):  # bytes that are no text must not end the chat
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    if END in tokenizer.special_ids:
        print(f"{model.n_params():,} weights, reads {context} tokens; /help lists the commands")
    elif config.system:
        raise InputError(f"{config.checkpoint} is a base model: it has no --system; fine-tune it: python3 {TRAINER}")
    else:
        print("this is a base model, without the template's tokens: it does not answer, it goes on with your text")
    talk(read_lines(config.prompt), model, tokenizer, context, config)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
