"""Every command, path and link that README.md and the lesson pages name exists and parses."""

import itertools
import re
import shlex

import pytest

import generate_screenshots
from part_0.cli import build_parser
from part_6.chat_data import load_conversations
from part_7.preference_files import load_preferences
from tests.repository import FILES, PAGES, ROOT, SCRIPTS, module_of, relative, tree

NOT_OURS = {"pip", "pip3", "conda", "git", "source", "py", "ls", "tensorboard", r".venv\Scripts\activate", "torchrun",
            "export", "set"}


def commands(text):
    """The command lines in fenced bash blocks and in inline code that starts like one, each as a list of commands."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    outside = re.sub(r"```.*?```", "", text, flags=re.S)
    ours = re.compile(r"(python3|pip3?|conda|cd|ls|tensorboard) ")
    lines += [code for code in re.findall(r"`([^`\n]+)`", outside) if ours.match(code)]
    return [line for line in (line.split("  #")[0].strip() for line in lines) if line and not line.startswith("#")]


def check(line):
    """Follow a command line; AssertionError names what is not there."""
    folder = ROOT
    for command in re.split(r"&&|;|\|\|", line):
        words = command.split() if "\\" in command else shlex.split(command)
        words = list(itertools.dropwhile(re.compile(r"\w+=").match, words))  # VARIABLE=value before a command
        if words[0] == "cd":
            folder = (folder / words[1]).resolve()
            assert folder.is_dir() and folder.is_relative_to(ROOT), f"{line}: no folder {words[1]}"
        elif words[:3] == ["python3", "-m", "pytest"]:
            for word in words[3:]:
                assert word.startswith("-") or (folder / word.split("::")[0]).exists(), f"{line}: no {word}"
        elif words[:3] == ["python3", "-m", "venv"]:
            pass
        elif words[0] == "python3":
            script, flags = (words[2].replace(".", "/") + ".py", words[3:]) if words[1] == "-m" else (words[1], words[2:])
            path = (folder / script).resolve()
            assert path.is_file(), f"{line}: no {script}"
            if path.name == "generate_screenshots.py":
                generate_screenshots.parse(flags)
            else:
                module = module_of(path)
                module.Config(**vars(build_parser(module.Config, module.__doc__).parse_args(flags)))
        else:
            assert words[0] in NOT_OURS, f"{line}: what is {words[0]}?"
        if words[0].startswith("pip") and "-r" in words:
            assert (folder / words[words.index("-r") + 1]).is_file(), line


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_command_of_a_page_exists_and_parses(page):
    found = commands(page.read_text(encoding="utf-8"))
    assert found
    for line in found:
        check(line)


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != ROOT], ids=relative)
def test_a_lesson_page_has_each_lesson_and_names_each_script_of_its_part(page):
    text = page.read_text(encoding="utf-8")
    for path in (path for path in FILES if path.parent == page.parent):
        assert path.name in text, f"{path.name} is not on its page"
        number = re.match(r"Lesson (\d\.\d)", tree(path).body[0].value.value)[1]
        assert re.search(rf"^## {re.escape(number)} ", text, re.M), f"no section {number}"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_relative_link_and_image_resolves(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|mailto:", link):
            target, _, anchor = link.partition("#")
            path = (page.parent / target).resolve() if target else page
            assert path.exists(), f"{relative(page)}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{relative(page)}: {link}"


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_every_command_in_a_script_s_docstring_parses(path):
    for line in re.findall(r"^ +(python3 .*)$", module_of(path).__doc__, re.M):
        check(re.split(r"\s{2,}", line)[0])


def examples(heading):
    """The lines of the README's JSONL blocks under a bold heading of "Your own data"."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own data")[1].split(f"**{heading}**")[1]
    return "\n".join(re.findall(r"```jsonl\n(.*?)\n```", re.split(r"^\*\*", text, flags=re.M)[0], re.S))


def test_the_readme_s_examples_of_instructions_are_read_as_they_are_meant(tmp_path):
    (tmp_path / "my.jsonl").write_text(examples("Instructions."), encoding="utf-8")
    said = [[(message["role"][0], message["content"]) for message in messages]
            for messages in load_conversations(tmp_path / "my.jsonl")]
    assert said == [[("u", "Name a primary colour."), ("a", "Red.")],
                    [("u", "Translate into French.\n\nGood morning"), ("a", "Bonjour")],
                    [("u", "Name a primary colour."), ("a", "Blue.")],
                    [("u", "Hello"), ("a", "Good day."), ("u", "And goodbye?"), ("a", "Farewell.")]]


def test_the_readme_s_examples_of_preferences_are_read_as_they_are_meant(tmp_path):
    (tmp_path / "my.jsonl").write_text(examples("Preferences."), encoding="utf-8")
    pairs, dropped = load_preferences(tmp_path / "my.jsonl")
    said = {(pair.prompt[-1]["content"], pair.chosen.text, pair.rejected.text) for split in pairs.values() for pair in split}
    assert said == {("Tell me about Paris.", "Paris is the capital of France.", "Paris is a city."),
                    ("Can you help me?", "Gladly. With what?", "No.")} and not dropped


def test_a_command_that_does_not_exist_is_noticed():
    for line in ("python3 part_1/demo_nothing.py", "cd part_77", "python3 part_1/demo_single_head.py --no_flag 1",
                 "python3 generate_screenshots.py --walk", "python3 -m pytest tests/nothing", "make all"):
        with pytest.raises((AssertionError, SystemExit)):
            check(line)


def test_the_two_commands_and_the_quick_start_lines_stand_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in ("pip3 install -r requirements.txt && python3 generate_screenshots.py --run", "python3 -m pytest",
                 "cd part_1 && python3 demo_visualize_multi_head.py && cd ..", "python3 generate_screenshots.py",
                 "ls -lh screenshots/"):
        assert line in text.splitlines()
