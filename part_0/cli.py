"""Lesson 0.2 - one frozen dataclass is the whole command line of a script.

    @dataclass(frozen=True)
    class Config:
        steps: int = option(200, "optimizer steps")
        quick: bool = option(False, QUICK_HELP)
        QUICK: ClassVar[dict] = {"steps": 5}

    if __name__ == "__main__":
        run_script(main, Config, __doc__)

gives `--steps` with its type, default and help, checks the value, and calls `main(config)`. With `--quick` the values in
`QUICK` become the defaults, so that a flag given beside it still wins. A script with a field `preset` has a dict `PRESETS`
too: preset's name to the values that it makes the defaults.
"""

import argparse
import dataclasses
import math
import shlex
import sys
import types
import typing
from pathlib import Path

QUICK_HELP = "the same path in seconds, to see that it works; figures go to out/quick"


class InputError(ValueError):
    """What a person gave (a flag, a file, an earlier stage) cannot be used; the message says why and what mends it.

    `run_script` ends the script with this one line and exit code 2. Any other exception is a bug and shows its traceback.
    """


def option(default, help, choices=None):
    """A dataclass field that becomes the flag `--name` with this default, help text and (optional) allowed values."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line instead of argparse's usage block."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def _finite_float(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _int_64(text):
    value = int(text)
    if not -2**63 <= value < 2**63:
        raise ValueError(text)
    return value


# argparse names the type in its message: "invalid float value: 'nan'"
_finite_float.__name__, _int_64.__name__ = "float", "64-bit int"


def _flag_type(annotation):
    """What turns a flag's text into `annotation` (or into X of `X | None`); floats must be finite, ints fit torch's."""
    if isinstance(annotation, types.UnionType):
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return {float: _finite_float, int: _int_64}.get(annotation, annotation)


def build_parser(config_class, description):
    """The argparse parser whose flags are the fields of `config_class`."""
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    annotations = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        help_text = field.metadata["help"].replace("%", "%%")
        if annotations[field.name] is bool:
            parser.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, default=field.default,
                                help=help_text)
        else:
            parser.add_argument(f"--{field.name}", type=_flag_type(annotations[field.name]), default=field.default,
                                choices=field.metadata["choices"], help=f"{help_text} (default: {field.default})")
    return parser


def changed_defaults(config_class, flags):
    """The defaults that `flags` (a dict) puts in place of the fields' own: those of its preset, then those of --quick."""
    changes = dict(config_class.PRESETS[flags["preset"]]) if "preset" in flags else {}
    return changes | config_class.QUICK if flags.get("quick") else changes


def parse_config(config_class, description, argv=None):
    """Turn a command line into a `config_class`.

    argv: list of str, the flags (default: sys.argv[1:]). A flag that is unknown, of the wrong type, or refused by the
    dataclass's own `__post_init__` (ValueError) ends the program with one line and exit code 2.
    """
    parser = build_parser(config_class, description)
    namespace = parser.parse_args(argv)
    if changes := changed_defaults(config_class, vars(namespace)):
        parser.set_defaults(**changes)
        namespace = parser.parse_args(argv)
    try:
        return config_class(**vars(namespace))
    except ValueError as error:
        parser.error(str(error))


def check_positive(config, *names):
    """Raise InputError unless each named field of `config` is above zero."""
    for name in names:
        if getattr(config, name) <= 0:
            raise InputError(f"--{name} must be above 0, not {getattr(config, name)}")


def check_text(config, *names):
    """Raise InputError unless each named field of `config` is a text: not empty, and valid Unicode."""
    for name in names:
        text = getattr(config, name)
        if not text:
            raise InputError(f"--{name} must not be empty")
        if any("\ud800" <= character <= "\udfff" for character in text):  # bytes of the command line that are no text
            raise InputError(f"--{name} must be valid UTF-8")


def command_line(script, config):
    """The command, from the repository root, that runs `script` (its __file__) with `config`: only changed flags show."""
    path = Path(script).resolve()
    words = ["python3", f"{path.parent.name}/{path.name}"]
    changes = changed_defaults(type(config), dataclasses.asdict(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == changes.get(field.name, field.default):
            continue
        if isinstance(value, bool):
            words.append(f"--{field.name}" if value else f"--no-{field.name}")
        elif str(value).startswith("-"):  # argparse would take it for a flag
            words.append(f"--{field.name}={value}")
        else:
            words += [f"--{field.name}", str(value)]
    return shlex.join(words)


def run_script(main, config_class, description):
    """Parse the command line and call `main(config)`; an InputError ends in one line and exit code 2, Ctrl-C in 130."""
    for stream in (sys.stdout, sys.stderr):  # a Windows console may not be UTF-8: show what it can
        stream.reconfigure(encoding="utf-8", errors="replace")
    config = parse_config(config_class, description)
    try:
        main(config)
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
