"""A dataclass is the command line: types, defaults, one-line errors, --quick, and the command that repeats a run."""

import shlex
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from part_0.cli import InputError, changed_defaults, check_positive, command_line, option, parse_config, run_script


@dataclass(frozen=True)
class Config:
    steps: int = option(200, "optimizer steps, 100% of them")
    lr: float = option(1e-3, "learning rate")
    data: str = option("tinyworld", "corpus")
    shape: str = option("round", "one of two", ("round", "square"))
    n_kv_head: int | None = option(None, "key-value heads")
    tied: bool = option(True, "one matrix")
    resume: bool = option(False, "go on")
    quick: bool = option(False, "in seconds")
    QUICK: ClassVar[dict] = dict(steps=5, data="tiny", tied=False)

    def __post_init__(self):
        check_positive(self, "steps")


def parse(line):
    return parse_config(Config, "a script", shlex.split(line))


def refused(line, capsys):
    """The stderr of a command line that must end with exit code 2."""
    with pytest.raises(SystemExit) as exit:
        parse(line)
    assert exit.value.code == 2
    return capsys.readouterr().err


def test_no_flags_give_the_defaults():
    assert parse("") == Config(200, 1e-3, "tinyworld", "round", None, True, False, False)


def test_flags_become_values_of_the_fields_types():
    config = parse("--steps 7 --lr 3 --data 5 --n_kv_head 2")
    assert [(type(value), value) for value in (config.steps, config.lr, config.data, config.n_kv_head)] == [
        (int, 7), (float, 3.0), (str, "5"), (int, 2)]


@pytest.mark.parametrize("line, tied, resume", [("--no-tied", False, False), ("--resume", True, True),
                                                ("--tied --no-resume", True, False)])
def test_booleans_have_a_flag_and_its_opposite(line, tied, resume):
    config = parse(line)
    assert (config.tied, config.resume) == (tied, resume)


@pytest.mark.parametrize("line, named", [
    ("--lr nan", "nan"), ("--lr inf", "inf"), ("--lr fast", "fast"), ("--steps 1.5", "1.5"), ("--shape flat", "flat"),
    ("--stepps 3", "--stepps"), ("--step 3", "--step"), ("--steps", "--steps"), ("--steps 0", "--steps"),
    ("--n_kv_head two", "two"), ("stray", "stray")])
def test_a_bad_command_line_ends_in_one_line_that_names_it(line, named, capsys):
    error = refused(line, capsys)
    assert named in error and error.count("\n") == 1 and error.endswith("\n")


def test_flags_cannot_be_abbreviated(capsys):
    assert "--st" in refused("--st 3", capsys)


def test_help_shows_flag_default_and_text(capsys):
    with pytest.raises(SystemExit) as exit:
        parse("--help")
    assert exit.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "a script" in words and "--steps" in words and "optimizer steps, 100% of them (default: 200)" in words


def test_quick_changes_defaults_and_an_explicit_flag_wins():
    assert parse("--quick") == Config(steps=5, data="tiny", tied=False, quick=True)
    assert parse("--quick --steps 9 --tied") == Config(steps=9, data="tiny", tied=True, quick=True)
    assert parse("--steps 9 --quick") == Config(steps=9, data="tiny", tied=False, quick=True)


def test_command_line_shows_only_what_differs(tmp_path):
    script = tmp_path / "part_7" / "demo.py"
    assert command_line(script, Config()) == "python3 part_7/demo.py"
    assert command_line(script, Config(steps=3, tied=False, data="a b")) == (
        "python3 part_7/demo.py --steps 3 --data 'a b' --no-tied")


def test_command_line_of_a_quick_run_shows_only_what_differs_from_it():
    assert command_line("part_7/demo.py", parse("--quick --steps 9")) == "python3 part_7/demo.py --steps 9 --quick"


def repeated(config):
    """The config that the command of `config` gives."""
    program, script, *flags = shlex.split(command_line("part_0/demo.py", config))
    assert (program, script) == ("python3", "part_0/demo.py")
    return parse_config(Config, "a script", flags)


# Texts that do not start with "-" (argparse takes those for flags), and no value that --quick would have to undo.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda text: text[0] != "-")


@dataclass(frozen=True)
class Sized(Config):
    preset: str = option("small", "sizes that go together", ("small", "large", "wide"))
    PRESETS: ClassVar[dict] = dict(small={}, large=dict(steps=9000, lr=0.5, n_kv_head=8),
                                   wide=dict(shape="square", tied=False))


def sized(line):
    return parse_config(Sized, "a script", shlex.split(line))


def test_a_preset_changes_defaults_and_an_explicit_flag_wins_on_either_side():
    assert sized("") == sized("--preset small") == Sized()
    assert sized("--preset large") == Sized(steps=9000, lr=0.5, n_kv_head=8, preset="large")
    for line in ("--preset large --steps 200", "--steps 200 --preset large"):  # though 200 is the field's own default
        assert sized(line) == Sized(steps=200, lr=0.5, n_kv_head=8, preset="large")
    assert sized("--preset wide --tied") == Sized(shape="square", tied=True, preset="wide")


def test_quick_wins_over_a_preset_and_a_flag_over_both():
    assert sized("--preset large --quick") == Sized(steps=5, lr=0.5, n_kv_head=8, data="tiny", tied=False, quick=True,
                                                    preset="large")
    assert sized("--preset large --quick --steps 7").steps == 7


def test_one_preset_leaves_the_next_command_line_alone():
    sized("--preset large")
    assert sized("") == Sized()


def test_changed_defaults_are_the_preset_s_then_quick_s():
    assert changed_defaults(Sized, dict(preset="large", quick=False)) == dict(steps=9000, lr=0.5, n_kv_head=8)
    assert changed_defaults(Sized, dict(preset="large", quick=True)) == dict(steps=5, lr=0.5, n_kv_head=8, data="tiny",
                                                                             tied=False)
    assert changed_defaults(Config, dict(quick=False)) == {}
    assert Sized.PRESETS["large"] == dict(steps=9000, lr=0.5, n_kv_head=8)  # and the class keeps its own


@pytest.mark.parametrize("line, command", [
    ("--preset large", "--preset large"), ("--preset large --steps 200", "--steps 200 --preset large"),
    ("--preset large --steps 9000", "--preset large"), ("--preset wide --tied", "--tied --preset wide"),
    ("--preset large --quick --data tinyworld", "--data tinyworld --quick --preset large")])
def test_the_command_of_a_preset_shows_only_what_differs_from_it_and_repeats(line, command):
    words = shlex.split(command_line("part_0/demo.py", sized(line)))
    assert words == ["python3", "part_0/demo.py", *command.split()]
    assert parse_config(Sized, "a script", words[2:]) == sized(line)


def test_an_unknown_preset_is_refused_by_name(capsys):
    with pytest.raises(SystemExit) as exit:
        sized("--preset huge")
    error = capsys.readouterr().err
    assert exit.value.code == 2 and "huge" in error and "large" in error and error.count("\n") == 1


@settings(max_examples=50, deadline=None)
@given(st.builds(Config, steps=st.integers(1, 2**63 - 1), lr=st.floats(0, 1e300), data=texts,
                 shape=st.sampled_from(["round", "square"]), n_kv_head=st.none() | st.integers(0, 2**63 - 1),
                 tied=st.booleans(), resume=st.booleans()))
def test_the_command_of_a_config_gives_that_config(config):
    assert repeated(config) == config


@pytest.mark.parametrize("line", ["--quick --steps 200", "--quick --tied", "--quick --data tinyworld"])
def test_a_quick_run_with_a_full_default_repeats(line):
    assert repeated(parse(line)) == parse(line)


@pytest.mark.parametrize("line", ["--lr=-1e-05", "--data=-dashed", "--data=--steps"])
def test_a_value_that_starts_with_a_dash_repeats(line):
    assert repeated(parse(line)) == parse(line)


def run(main, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["/somewhere/demo.py", *flags])
    run_script(main, Config, "a script")


def test_run_script_calls_main_with_the_config(monkeypatch):
    seen = []
    run(seen.append, monkeypatch, "--steps", "4")
    assert seen == [Config(steps=4)]


def test_run_script_ends_an_input_error_in_one_line_and_code_2(monkeypatch, capsys):
    def main(config):
        raise InputError("there is no file x: make it with make_x")

    with pytest.raises(SystemExit) as exit:
        run(main, monkeypatch)
    assert exit.value.code == 2
    assert capsys.readouterr().err == "demo.py: error: there is no file x: make it with make_x\n"


def test_run_script_lets_a_bug_through(monkeypatch):
    def main(config):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run(main, monkeypatch)


def test_run_script_ends_ctrl_c_with_code_130(monkeypatch, capsys):
    def main(config):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit:
        run(main, monkeypatch)
    assert exit.value.code == 130
    assert capsys.readouterr().err.count("\n") == 1
