"""The collector on a repository of its own: tiny scripts that write a ready-made PNG, so that nothing needs torch."""

import base64
import io
import itertools
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import generate_screenshots as collector
from part_0.gallery import markdown

NASTY = 'a < b & "c" | *d_model* $x_1$ <script>alert(1)</script> [l](u) `code` ${title} ≤ é'
SCRIPT = '''"""{docstring}"""
import base64, pathlib, sys
here = pathlib.Path(__file__).resolve()
with open("order.txt", "a") as log:  # in the folder that it was started from
    log.write(here.parent.name + "/" + here.name + "\\n")
(here.parent / "out").mkdir(exist_ok=True)
for name, data in {figures!r}.items():
    (here.parent / "out" / name).write_bytes(base64.b64decode(data))
{end}
'''


def png(command="python3 part_1/demo_heads.py", title="Heads", caption="Four heads.", seconds="12.3", color="red",
        leave_out=(), noise=0):
    """The bytes of a 3 x 2 PNG with the four chunks; `noise` bytes of text on top make it larger."""
    chunks = {"Title": title, "Description": caption, "Command": command, "Seconds": seconds}
    info = PngInfo()
    for name, text in chunks.items():
        if name not in leave_out:
            info.add_text(name, text)
    if noise:
        info.add_text("Comment", "x" * noise)
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), color).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "JPEG")
    return buffer.getvalue()


def put(root, path, data):
    """Write a file, making its folder."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return data


def script(root, path, lesson="Lesson 1.1", figures=(), end=""):
    """A script at `path` that notes its name in order.txt, draws `figures` ({name: bytes}) and then does `end`."""
    encoded = {name: base64.b64encode(data).decode() for name, data in dict(figures).items()}
    put(root, path, SCRIPT.format(docstring=f"{lesson} - a script.", figures=encoded, end=end).encode())


def order(root):
    """The scripts that ran, in their order."""
    path = root / "order.txt"
    return path.read_text().split() if path.exists() else []


def gallery(root):
    """{name: bytes} of the PNGs in screenshots/."""
    return {path.name: path.read_bytes() for path in sorted((root / "screenshots").glob("*.png"))}


def tree(root):
    """{path: bytes} of every file."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# --- Collecting ------------------------------------------------------------------------------------------------------

def test_a_figure_is_copied_under_the_name_of_its_part(tmp_path, capsys):
    first = put(tmp_path, "part_1/out/heads.png", png())
    second = put(tmp_path, "part_2/out/heads.png", png("python3 part_2/demo_loss.py"))
    assert collector.main([], tmp_path) == 0
    assert gallery(tmp_path) == {"part_1_heads.png": first, "part_2_heads.png": second}
    assert "2 figures collected" in capsys.readouterr().out


def test_a_figure_drawn_again_replaces_its_screenshot(tmp_path):
    put(tmp_path, "screenshots/part_1_heads.png", png(color="red"))
    new = put(tmp_path, "part_1/out/heads.png", png("python3 part_1/demo_heads.py --n_head 8", color="blue"))
    assert collector.main([], tmp_path) == 0
    assert gallery(tmp_path) == {"part_1_heads.png": new}


def test_only_what_the_same_script_no_longer_draws_is_removed(tmp_path):
    put(tmp_path, "part_1/out/heads.png", png())
    put(tmp_path, "screenshots/part_1_renamed.png", png("python3 part_1/demo_heads.py --n_head 8"))
    kept = {"part_1_other.png": png("python3 part_1/demo_heads_too.py"),
            "part_2_heads.png": png("python3 part_2/demo_heads.py"),
            "logo.png": png(leave_out=collector.CHUNKS), "notes.txt": b"mine", "old/part_1_renamed.png": png()}
    for name, data in kept.items():
        put(tmp_path, f"screenshots/{name}", data)
    assert collector.main([], tmp_path) == 0
    left = tree(tmp_path / "screenshots")
    assert set(left) == {*kept, "part_1_heads.png", "README.md", "index.html"}
    assert {name: left[name] for name in kept} == kept


def test_a_demo_that_has_drawn_nothing_here_keeps_its_screenshots(tmp_path):
    script(tmp_path, "part_1/demo_heads.py")
    old = put(tmp_path, "screenshots/part_1_heads.png", png())
    assert collector.main([], tmp_path) == 0
    assert gallery(tmp_path) == {"part_1_heads.png": old}


def test_quick_figures_are_never_collected(tmp_path, capsys):
    script(tmp_path, "part_1/demo_heads.py")
    put(tmp_path, "part_1/out/quick/heads.png", png("python3 part_1/demo_heads.py --quick"))
    assert collector.main([], tmp_path) == 0
    assert gallery(tmp_path) == {}
    assert "    python3 part_1/demo_heads.py" in capsys.readouterr().out.splitlines()


def test_demos_without_a_figure_are_named_with_their_command_and_trainers_are_not(tmp_path, capsys):
    for path in ("part_1/demo_heads.py", "part_1/demo_masks.py", "part_2/train.py", "part_2/demo_loss.py"):
        script(tmp_path, path)
    put(tmp_path, "part_1/out/heads.png", png())
    assert collector.main([], tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 figure collected; the gallery is screenshots/index.html"
    assert lines[2:] == ["    python3 part_1/demo_masks.py", "    python3 part_2/demo_loss.py"]


def test_a_screenshot_whose_script_is_gone_is_named(tmp_path, capsys):
    script(tmp_path, "part_1/demo_heads.py")
    put(tmp_path, "screenshots/part_1_heads.png", png())
    put(tmp_path, "screenshots/part_1_old.png", png("python3 part_1/demo_old.py"))
    assert collector.main([], tmp_path) == 0
    named = [line for line in capsys.readouterr().out.splitlines() if line.startswith("screenshots/")]
    assert len(named) == 1 and "part_1_old.png" in named[0] and "part_1/demo_old.py" in named[0]


@pytest.mark.parametrize("folder", ["part_1/out/", "screenshots/part_1_"])
@pytest.mark.parametrize("data, reason", [
    *((png(leave_out=[name]), name) for name in ("Title", "Description", "Command", "Seconds")),
    (png(title="  "), "Title"),
    (png("python3 demo_heads.py"), "Command"),
    (png(seconds="soon"), "Seconds"),
    (png(seconds="nan"), "Seconds"),
    (png()[:-20], "PNG"),
    (jpeg(), "PNG"),
    (b"", "PNG"),
])
def test_a_figure_that_does_not_say_what_it_is_stops_everything(tmp_path, capsys, folder, data, reason):
    put(tmp_path, "part_1/out/a.png", png(color="blue"))
    put(tmp_path, "screenshots/part_1_a.png", png())
    put(tmp_path, f"{folder}bad.png", data)
    before = tree(tmp_path)
    assert collector.main([], tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{folder}bad.png" in error and reason in error
    assert tree(tmp_path) == before


def test_a_large_figure_is_copied_with_a_warning(tmp_path, capsys):
    put(tmp_path, "part_1/out/small.png", png(noise=199 * 1024))
    large = put(tmp_path, "part_1/out/large.png", png(noise=201 * 1024))
    assert collector.main([], tmp_path) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1 and "part_1/out/large.png" in warnings[0] and "200 KiB" in warnings[0]
    assert gallery(tmp_path)["part_1_large.png"] == large


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    put(tmp_path, "page.html", b"old")

    def disk_full(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(OSError, match="no space"):
        collector.write_file(tmp_path / "page.html", b"new")
    assert tree(tmp_path) == {"page.html": b"old"}


# --- The two pages ---------------------------------------------------------------------------------------------------

class Page(HTMLParser):
    """The tags of a page, its text, and the headings in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.headings = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)
        if self.tags and self.tags[-1][0] in ("h1", "h2", "h3") and data.strip():
            self.headings.append((self.tags[-1][0], data))

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def pages(tmp_path):
    """(README.md, index.html, {name: bytes}) for three figures: by lesson 1.10, by lesson 1.2, and of part 2."""
    script(tmp_path, "part_1/demo_a.py", "Lesson 1.10")
    script(tmp_path, "part_1/demo_z.py", "Lesson 1.2")
    script(tmp_path, "part_2/demo_loss.py", "Lesson 2.3")
    put(tmp_path, "part_1/out/a.png", png("python3 part_1/demo_a.py --prompt 'x < y'", "First & <last>", NASTY, "200"))
    put(tmp_path, "part_1/out/z.png", png("python3 part_1/demo_z.py", "Zeta", "Plain."))
    put(tmp_path, "screenshots/part_2_loss.png", png("python3 part_2/demo_loss.py", "Loss", "Falls.", "0.42"))
    assert collector.main([], tmp_path) == 0
    files = tree(tmp_path / "screenshots")
    return files["README.md"].decode("utf-8"), files["index.html"].decode("utf-8"), gallery(tmp_path)


def test_both_pages_group_all_stored_figures_by_part_in_lesson_order(pages):
    readme, index, _ = pages
    headings = [line for line in readme.splitlines() if line.startswith("##")]
    assert headings == ["## Part 1: Transformer core", "### Zeta", "### First \\& \\<last\\>",
                        "## Part 2: Training a tiny language model", "### Loss"]
    assert Page(index).headings == [
        ("h1", "LLM from Scratch (PyTorch): the figures"), ("h2", "Part 1: Transformer core"), ("h3", "Zeta"),
        ("h3", "First & <last>"), ("h2", "Part 2: Training a tiny language model"), ("h3", "Loss")]


def test_the_readme_shows_image_caption_command_and_seconds(pages):
    readme, _, _ = pages
    blocks = readme.split("### Loss\n\n")[1].rstrip("\n").split("\n\n")
    assert blocks == ["![Falls.](part_2_loss.png)", "Falls.", "```bash\npython3 part_2/demo_loss.py\n```",
                      "Drawn in 0.4 s."]


def test_the_readme_shows_a_caption_with_markup_as_text(pages):
    assert f"![{markdown(NASTY)}](part_1_a.png)\n\n{markdown(NASTY)}\n" in pages[0]


def test_markdown_shows_special_characters_as_they_are():
    # CommonMark 0.31, section 2.4: a backslash before ASCII punctuation makes it literal.
    escaped = markdown(NASTY)
    for character in "<>&*_$[]`|":
        assert escaped.count(character) == escaped.count("\\" + character) > 0
    for text, expected in {"1. list": "1\\. list", "- list": "\\- list", "+1": "\\+1", "a - 1.": "a - 1.",
                           "a\n# b": "a \\# b"}.items():
        assert markdown(text) == expected


def test_the_page_holds_every_figure_inside_and_refers_to_nothing_outside(pages):
    _, index, screenshots = pages
    page = Page(index)
    prefix = "data:image/png;base64,"
    sources = [image["src"] for image in page.named("img")]
    assert all(source.startswith(prefix) for source in sources)
    held = [base64.b64decode(source.removeprefix(prefix)) for source in sources]
    assert held == [screenshots[name] for name in ("part_1_z.png", "part_1_a.png", "part_2_loss.png")]
    assert "http://" not in index and "https://" not in index and "url(" not in index and "@import" not in index
    links = [attrs["href"] for _, attrs in page.tags if "href" in attrs]
    identifiers = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    assert {link[:1] for link in links} == {"#"} and {link[1:] for link in links} <= set(identifiers)
    assert {"part-1", "part-2", "part_1_z", "part_1_a", "part_2_loss", "figures"} <= {link[1:] for link in links}


def test_special_characters_arrive_as_text_and_alternative_text(pages):
    page = Page(pages[1])
    assert page.named("img")[1]["alt"] == NASTY
    assert NASTY in page.text and "python3 part_1/demo_a.py --prompt 'x < y'" in page.text
    assert "Drawn in 3 min 20 s" in page.text
    assert len(page.named("script")) == 1


def test_the_page_says_its_language_and_fits_a_phone(pages):
    page = Page(pages[1])
    assert page.named("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")
    assert "LLM from Scratch (PyTorch): the figures" in pages[1].split("<title>")[1].split("</title>")[0]


def test_without_figures_both_pages_say_what_draws_them(tmp_path):
    assert collector.main([], tmp_path) == 0
    for name in ("README.md", "index.html"):
        assert "python3 generate_screenshots.py --run" in (tmp_path / "screenshots" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("seconds, shown", [(None, "?"), (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"),
                                            (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s")])
def test_seconds_are_shown_as_a_person_would_say_them(seconds, shown):
    assert collector.show_seconds(seconds) == shown


# --- Running ---------------------------------------------------------------------------------------------------------

def several_parts(root):
    """Scripts whose names and dates are in another order than their lessons, and two files that are none of them."""
    for path, lesson in {
            "part_2/demo_b.py": "Lesson 2.1", "part_1/demo_a.py": "Lesson 1.10", "part_1/demo_z.py": "Lesson 1.2",
            "part_1/demo_y.py": "Lesson 1.2", "part_1/train.py": "Lesson 1.2", "part_1/train_two.py": "Lesson 1.10",
            "part_1/demo_none.py": "About nothing", "part_0/demo_c.py": "Lessons 0.2 and 0.3"}.items():
        script(root, path, lesson)
    script(root, "part_1/heads.py")  # a library module
    script(root, "demo_top.py")


IN_ORDER = ["part_0/demo_c.py", "part_1/train.py", "part_1/demo_y.py", "part_1/demo_z.py", "part_1/train_two.py",
            "part_1/demo_a.py", "part_1/demo_none.py", "part_2/demo_b.py"]


def test_run_goes_in_lesson_order_from_the_root_with_training_before_its_demos(tmp_path):
    several_parts(tmp_path)
    assert collector.main(["--run"], tmp_path) == 0
    assert order(tmp_path) == IN_ORDER


@pytest.mark.parametrize("words, expected", [
    (["2", "0"], ["part_0/demo_c.py", "part_2/demo_b.py"]),
    (["part_1"], IN_ORDER[1:7]),
    (["part_1/"], IN_ORDER[1:7]),
    (["part_1/demo_z.py"], ["part_1/demo_z.py"]),
    (["./part_1/demo_z.py", "2", "part_1/demo_z.py"], ["part_1/demo_z.py", "part_2/demo_b.py"]),
])
def test_run_takes_parts_and_scripts(tmp_path, words, expected):
    several_parts(tmp_path)
    assert collector.main(["--run", *words], tmp_path) == 0
    assert order(tmp_path) == expected


@pytest.mark.parametrize("argv, named", [
    (["--run", "1", "7"], "'7'"),
    (["--run", "part_12"], "'part_12'"),
    (["--run", "part_1/demo_b.py"], "'part_1/demo_b.py'"),
    (["--run", "part_1/heads.py"], "'part_1/heads.py'"),
    (["--run", "demo_top.py"], "'demo_top.py'"),
    (["--run", "."], "'.'"),
    (["--run", "../part_1"], "'../part_1'"),
    (["--runn"], "--runn"),
    (["1"], "1"),
    (["--keep-going"], "--run"),
    (["--fresh"], "--run"),
    (["--quick"], "--run"),
    (["--run", "--quick", "--verify"], "--verify"),
])
def test_wrong_arguments_end_in_one_line_and_run_nothing(tmp_path, capsys, argv, named):
    several_parts(tmp_path)
    before = tree(tmp_path)
    try:
        code = collector.main(argv, tmp_path)
    except SystemExit as stop:  # argparse's own way out
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and named in error
    assert tree(tmp_path) == before


def test_only_figures_that_the_scripts_of_this_run_drew_are_collected(tmp_path):
    new = png("python3 part_1/demo_heads.py")
    another = png("python3 part_1/demo_another.py")
    script(tmp_path, "part_1/demo_heads.py", figures={"heads.png": new, "another.png": another})
    put(tmp_path, "part_2/out/loss.png", png("python3 part_2/demo_loss.py"))
    assert collector.main(["--run", "1"], tmp_path) == 0
    assert gallery(tmp_path) == {"part_1_heads.png": new}


def test_the_gallery_grows_after_every_part(tmp_path):
    script(tmp_path, "part_1/demo_heads.py", figures={"heads.png": png()})
    look = "print([path.name for path in sorted(pathlib.Path('screenshots').iterdir())])"
    script(tmp_path, "part_2/demo_loss.py", end=look)
    assert collector.main(["--run"], tmp_path) == 0
    seen = (tmp_path / "part_2" / "out" / "demo_loss.log").read_text()
    assert seen.strip() == "['README.md', 'index.html', 'part_1_heads.png', 'seconds.json']"


def test_a_script_loses_the_figures_that_it_draws_no_more(tmp_path):
    new, other = png(color="blue"), png("python3 part_1/demo_other.py")
    script(tmp_path, "part_1/demo_heads.py", figures={"heads.png": new})
    stale = png("python3 part_1/demo_heads.py --n_head 8")
    for name, data in {"heads.png": png(), "stale.png": stale, "other.png": other}.items():
        put(tmp_path, f"part_1/out/{name}", data)
        put(tmp_path, f"screenshots/part_1_{name}", data)
    assert collector.main(["--run", "part_1/demo_heads.py"], tmp_path) == 0
    assert gallery(tmp_path) == {"part_1_heads.png": new, "part_1_other.png": other}
    assert {path.name for path in (tmp_path / "part_1" / "out").glob("*.png")} == {"heads.png", "other.png"}


def test_progress_lines_tell_the_expected_time(tmp_path, capsys):
    for path in ("part_1/demo_heads.py", "part_1/demo_new.py", "part_1/demo_timed.py"):
        script(tmp_path, path)
    put(tmp_path, "screenshots/part_1_a.png", png("python3 part_1/demo_heads.py", seconds="11.2"))
    put(tmp_path, "screenshots/part_1_b.png", png("python3 part_1/demo_heads.py", seconds="14.1"))
    put(tmp_path, "screenshots/part_1_c.png", png("python3 part_1/demo_timed.py", seconds="99"))
    put(tmp_path, "screenshots/seconds.json", json.dumps({"part_1/demo_timed.py": 21.0}).encode())
    assert collector.main(["--run"], tmp_path) == 0
    starts = [line for line in capsys.readouterr().err.splitlines() if "... (" in line]
    assert starts == ["[1/3] part_1/demo_heads.py ... (expected 14 s)", "[2/3] part_1/demo_new.py ... (expected ?)",
                      "[3/3] part_1/demo_timed.py ... (expected 21 s)"]


def test_the_measured_time_of_a_trainer_is_remembered(tmp_path, capsys):
    script(tmp_path, "part_2/train.py", end="import time; time.sleep(0.2)")
    put(tmp_path, "screenshots/seconds.json", b"damaged")
    assert collector.main(["--run"], tmp_path) == 0
    assert "[1/1] part_2/train.py ... (expected ?)" in capsys.readouterr().err.splitlines()
    measured = json.loads((tmp_path / "screenshots" / "seconds.json").read_text())["part_2/train.py"]
    assert 0.2 <= measured < 30
    assert collector.main(["--run", "--fresh"], tmp_path) == 0
    shown = collector.show_seconds(measured)
    assert f"[1/1] part_2/train.py ... (expected {shown})" in capsys.readouterr().err.splitlines()


def test_the_pages_prefer_the_measured_time_of_the_same_command(tmp_path):
    put(tmp_path, "part_1/out/a.png", png("python3 part_1/demo_heads.py", seconds="5"))
    put(tmp_path, "part_1/out/b.png", png("python3 part_1/demo_heads.py --steps 9", seconds="6"))
    put(tmp_path, "part_1/out/c.png", png("python3 part_1/demo_other.py", seconds="7"))
    put(tmp_path, "screenshots/seconds.json",
        json.dumps({"part_1/demo_heads.py": 21.0, "part_1/demo_other.py": "damaged"}).encode())
    assert collector.main([], tmp_path) == 0
    lines = (tmp_path / "screenshots" / "README.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("Drawn in")] == [
        "Drawn in 21 s.", "Drawn in 6.0 s.", "Drawn in 7.0 s."]


def test_a_terminal_gets_a_bar_that_moves_while_a_script_runs(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    script(tmp_path, "part_1/demo_heads.py", end="import time; time.sleep(0.6)")
    script(tmp_path, "part_2/demo_loss.py")
    put(tmp_path, "screenshots/seconds.json", b'{"part_1/demo_heads.py": 70, "part_2/demo_loss.py": 50}')
    monkeypatch.setattr(collector, "TICK", 0.2)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert collector.main(["--run"], tmp_path) == 0
    shown = sys.stderr.getvalue()
    elapsed = [piece.split()[0] for piece in shown.split("part 1 demo_heads.py ")[1:]]
    assert "(expected 1 min 10 s); 2 min 0 s left" in shown and "(expected 50 s); 50 s left" in shown and "1/2 |" in shown
    assert len(set(elapsed)) >= 3 and elapsed[0] == "0.0"


# --- Failing ---------------------------------------------------------------------------------------------------------

def failing_repository(root):
    """In part 2 the first and fourth scripts succeed, the two between fail after drawing; parts 1 and 3 succeed."""
    put(root, "screenshots/part_2_bad.png", png("python3 part_2/demo_b.py"))
    fail = "for i in range(1, 21): print('line', i)\nraise SystemExit(3)"
    for path, lesson, end in [("part_1/demo_heads.py", "Lesson 1.1", ""), ("part_2/demo_a.py", "Lesson 2.1", ""),
                              ("part_2/demo_b.py", "Lesson 2.2", fail), ("part_2/demo_c.py", "Lesson 2.3", "1 / 0"),
                              ("part_2/demo_d.py", "Lesson 2.4", ""), ("part_3/demo_e.py", "Lesson 3.1", "")]:
        name = {"part_2/demo_b.py": "bad"}.get(path, path[-4])
        script(root, path, lesson, {f"{name}.png": png(f"python3 {path}", color="blue")}, end)


def test_a_failure_shows_the_last_lines_and_stops(tmp_path, capsys):
    failing_repository(tmp_path)
    old = gallery(tmp_path)
    assert collector.main(["--run"], tmp_path) == 1
    assert order(tmp_path) == ["part_1/demo_heads.py", "part_2/demo_a.py", "part_2/demo_b.py"]
    assert set(gallery(tmp_path)) == {"part_1_s.png", "part_2_a.png", "part_2_bad.png"}
    assert gallery(tmp_path)["part_2_bad.png"] == old["part_2_bad.png"]
    error = capsys.readouterr().err.splitlines()
    assert [line for line in error if line.startswith("    ")] == [f"    line {i}" for i in range(6, 21)]
    assert any("part_2/demo_b.py failed with exit code 3" in line for line in error)
    assert error[-1] == "1 failed: part_2/demo_b.py"


def test_keep_going_runs_the_rest_and_names_every_failure(tmp_path, capsys):
    failing_repository(tmp_path)
    old = gallery(tmp_path)
    assert collector.main(["--run", "--keep-going"], tmp_path) == 1
    assert len(order(tmp_path)) == 6
    assert set(gallery(tmp_path)) == {"part_1_s.png", "part_2_a.png", "part_2_bad.png", "part_2_d.png", "part_3_e.png"}
    assert gallery(tmp_path)["part_2_bad.png"] == old["part_2_bad.png"]
    error = capsys.readouterr().err
    assert "    line 20\n" in error and "    ZeroDivisionError: division by zero\n" in error
    assert error.splitlines()[-1] == "2 failed: part_2/demo_b.py, part_2/demo_c.py"


def test_a_failed_script_leaves_no_measured_time_and_keeps_its_old_figures(tmp_path):
    script(tmp_path, "part_1/demo_heads.py", end="1 / 0")
    old = put(tmp_path, "part_1/out/heads.png", png())
    assert collector.main(["--run"], tmp_path) == 1
    assert (tmp_path / "part_1" / "out" / "heads.png").read_bytes() == old
    assert not (tmp_path / "screenshots" / "seconds.json").exists()


def test_a_script_that_draws_a_figure_without_its_caption_has_failed(tmp_path, capsys):
    silent = png("python3 part_1/demo_a.py", leave_out=["Description"])
    script(tmp_path, "part_1/demo_a.py", "Lesson 1.1", {"a.png": silent})
    script(tmp_path, "part_1/demo_b.py", "Lesson 1.2", {"b.png": png("python3 part_1/demo_b.py")})
    assert collector.main(["--run", "--keep-going"], tmp_path) == 1
    assert set(gallery(tmp_path)) == {"part_1_b.png"}
    error = capsys.readouterr().err
    assert "part_1/out/a.png has no text chunk Description" in error and "1 failed: part_1/demo_a.py" in error


def test_a_damaged_screenshot_is_found_before_the_first_script_runs(tmp_path):
    script(tmp_path, "part_1/demo_heads.py")
    put(tmp_path, "screenshots/part_1_heads.png", b"")
    assert collector.main(["--run"], tmp_path) == 2
    assert order(tmp_path) == []


def test_ctrl_c_ends_the_running_script_too(tmp_path, monkeypatch, capsys):
    children, started, make = [], itertools.count(), collector.script_process

    def script_process(*args, **kwargs):
        children.append(make(*args, **kwargs))
        return children[-1]

    def press(bar, script, expected, left, seconds):
        if next(started) == 1:
            raise KeyboardInterrupt

    script(tmp_path, "part_1/demo_heads.py", end="import time; time.sleep(60)")
    monkeypatch.setattr(collector, "script_process", script_process)
    monkeypatch.setattr(collector, "TICK", 0.2)
    monkeypatch.setattr(collector, "show_tick", press)
    assert collector.main(["--run"], tmp_path) == 130
    assert [child.exitcode is not None for child in children] == [True]
    assert capsys.readouterr().err.splitlines()[-1] == (
        "generate_screenshots.py: stopped by Ctrl-C; the same command goes on from here")


# --- Running again ---------------------------------------------------------------------------------------------------

def chain(root):
    """A trainer, a demo that looks at its run, one of the same part that comes before both, and one of another part."""
    script(root, "part_1/demo_early.py", "Lesson 1.1", {"early.png": png("python3 part_1/demo_early.py")})
    script(root, "part_2/train.py", "Lesson 2.1", end="""
(here.parent / "runs" / "train").mkdir(parents=True, exist_ok=True)
(here.parent / "runs" / "train" / "best.pt").write_text("trained at " + str(__import__("time").time_ns()))""")
    script(root, "part_2/demo_look.py", "Lesson 2.2", {"look.png": png("python3 part_2/demo_look.py")}, "import part_2.loss")
    put(root, "part_2/loss.py", b"import part_1.heads")
    put(root, "part_1/heads.py", b"N_HEAD = 4")


CHAIN = ["part_1/demo_early.py", "part_2/train.py", "part_2/demo_look.py"]


def run_again(root, *flags):
    """The scripts that a further --run runs."""
    before = len(order(root))
    assert collector.main(["--run", *flags], root) == 0
    return order(root)[before:]


@pytest.fixture
def ran(tmp_path, monkeypatch):
    chain(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # the scripts' own first line does this in the repository
    assert run_again(tmp_path) == CHAIN
    return tmp_path


def test_what_is_up_to_date_is_not_run_again_unless_asked_for_and_keeps_its_figures(ran, capsys):
    before = gallery(ran)
    capsys.readouterr()
    assert run_again(ran) == []
    assert gallery(ran) == before and set(before) == {"part_1_early.png", "part_2_look.png"}
    shown = capsys.readouterr()
    assert [line for line in shown.err.splitlines() if "up to date" in line] == [
        f"[{i}/3] {path} ... up to date" for i, path in enumerate(CHAIN, 1)]
    assert run_again(ran, "1", "--fresh") == CHAIN[:1]
    assert run_again(ran, "--fresh") == CHAIN


@pytest.mark.parametrize("path, change, expected", [
    ("part_1/demo_early.py", "\nX = 1", CHAIN[:1]),
    ("part_2/loss.py", "\nX = 1", CHAIN[2:]),
    ("part_1/heads.py", "\nX = 1", CHAIN[2:]),  # which loss.py imports
    ("part_1/heads.py", "\n# a comment", []),
    ("part_2/train.py", "\nX = 1", CHAIN[1:]),  # what it trains is another model now
    ("part_2/runs/train/best.pt", "by hand", CHAIN[1:]),
    ("part_2/out/look.png", "drawn over", CHAIN[2:]),
    ("part_1/out/demo_early.json", "damaged", CHAIN[:1]),
])
def test_what_code_or_input_has_changed_runs_again(ran, path, change, expected):
    with open(ran / path, "a") as file:
        file.write(change)
    if path.endswith(".png"):  # a damaged figure would be refused
        (ran / path).write_bytes(png("python3 part_2/demo_look.py --steps 1"))
    assert run_again(ran) == expected


def test_a_figure_or_run_that_was_removed_is_made_again(ran):
    (ran / "part_1" / "out" / "early.png").unlink()
    (ran / "part_2" / "runs" / "train" / "best.pt").unlink()
    assert run_again(ran) == CHAIN


def test_after_a_failure_the_run_goes_on_where_it_was(tmp_path):
    chain(tmp_path)
    good = (tmp_path / "part_2" / "train.py").read_bytes()
    put(tmp_path, "part_2/train.py", good + b"\nraise SystemExit(3)")
    assert collector.main(["--run"], tmp_path) == 1
    put(tmp_path, "part_2/train.py", good)
    (tmp_path / "part_2" / "demo_look.py").write_text("'''Lesson 2.2 - nothing to import.'''")
    assert run_again(tmp_path) == CHAIN[1:2]


@pytest.mark.parametrize("docstring, expected", [("Lesson 2.1, with --resume auto", "['--resume', 'auto']"),
                                                 ("Lesson 2.1", "[]")])
def test_a_trainer_that_was_cut_off_goes_on_if_it_can(tmp_path, docstring, expected):
    script(tmp_path, "part_2/train.py", docstring, end="""
print(sys.argv[1:])
(here.parent / "runs" / "train").mkdir(parents=True, exist_ok=True)
if not sys.argv[1:]:
    (here.parent / "runs" / "train" / "config.json").write_text("{}")
if not pathlib.Path("second").exists():
    raise SystemExit(1)""")
    log = tmp_path / "part_2" / "out" / "train.log"
    assert collector.main(["--run"], tmp_path) == 1
    assert log.read_text().strip() == "[]"
    assert collector.main(["--run"], tmp_path) == 1  # cut off again
    assert log.read_text().strip() == expected
    put(tmp_path, "second", b"")
    assert collector.main(["--run"], tmp_path) == 0
    assert log.read_text().strip() == expected
    assert collector.main(["--run", "--fresh"], tmp_path) == 0  # it ended: the next begins anew
    assert log.read_text().strip() == "[]"


def test_a_trainer_that_was_cut_off_before_its_run_began_does_not_go_on_with_an_older_run(tmp_path):
    put(tmp_path, "part_2/runs/train/config.json", b"{}")
    script(tmp_path, "part_2/train.py", "Lesson 2.1, with --resume auto", end="""
print(sys.argv[1:])
raise SystemExit(1)""")
    for _ in range(2):
        assert collector.main(["--run"], tmp_path) == 1
        assert (tmp_path / "part_2" / "out" / "train.log").read_text().startswith("[]")


def test_a_stopped_trainer_gets_the_time_to_save(tmp_path, monkeypatch):
    def stop(*_):
        if (tmp_path / "ready").exists():
            raise KeyboardInterrupt

    script(tmp_path, "part_1/train.py", end="""
import signal, time
def save(*_):
    pathlib.Path("saved").write_text("yes")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").write_text("yes")
time.sleep(60)""")
    monkeypatch.setattr(collector, "TICK", 0.1)
    monkeypatch.setattr(collector, "show_tick", stop)
    assert collector.main(["--run"], tmp_path) == 130
    assert (tmp_path / "saved").exists()


# --- Quick runs ------------------------------------------------------------------------------------------------------

QUICK_END = """
print(sys.argv[1:])
(here.parent / "out" / "quick").mkdir(parents=True, exist_ok=True)
(here.parent / "out" / "quick" / (here.stem + ".png")).write_bytes(base64.b64decode({figure!r}))"""


def quick_script(root, path, lesson):
    figure = base64.b64encode(png(f"python3 {path} --quick")).decode()
    script(root, path, lesson, end=QUICK_END.format(figure=figure))


def test_a_quick_run_runs_trainers_first_and_replaces_nothing(tmp_path, capsys):
    for path, lesson in {"part_1/demo_a.py": "Lesson 1.1", "part_2/train.py": "Lesson 2.1",
                         "part_2/demo_b.py": "Lesson 2.2"}.items():
        quick_script(tmp_path, path, lesson)
    put(tmp_path, "screenshots/part_1_a.png", png("python3 part_1/demo_a.py"))
    before = tree(tmp_path / "screenshots")
    assert collector.main(["--run", "--quick"], tmp_path) == 0
    first, *demos = order(tmp_path)
    assert first == "part_2/train.py" and sorted(demos) == ["part_1/demo_a.py", "part_2/demo_b.py"]
    assert tree(tmp_path / "screenshots") == before
    assert "--quick" in (tmp_path / "part_1" / "out" / "quick" / "demo_a.log").read_text()
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in table if line[:1] in ("1", "2")] == ["1", "2"]  # figures: trainers drew one too
    assert not (tmp_path / "part_1" / "out" / "demo_a.json").exists()


def test_a_quick_run_that_fails_names_the_script(tmp_path, capsys):
    quick_script(tmp_path, "part_1/demo_a.py", "Lesson 1.1")
    script(tmp_path, "part_2/train.py", "Lesson 2.1", end="raise SystemExit(3)")
    assert collector.main(["--run", "--quick"], tmp_path) == 1
    assert order(tmp_path) == ["part_2/train.py"]
    assert capsys.readouterr().err.splitlines()[-1] == "1 failed: part_2/train.py"
    assert collector.main(["--run", "--quick", "--keep-going"], tmp_path) == 1
    assert order(tmp_path)[1:] == ["part_2/train.py", "part_1/demo_a.py"]


# --- Numbers ---------------------------------------------------------------------------------------------------------

def band(metric="val_loss", low=1.2, high=1.4, **changes):
    return dict(metric=metric, label=f"{metric}, nats", source="runs/train", command="python3 part_2/train.py", device="cpu",
                seeds=[1.3, 1.3, 1.3], low=low, high=high, lesson="2.4", below="Too good: is the text tiny?",
                above="Too few steps.") | changes


def numbers(root, value=1.3, device="cpu"):
    put(root, "part_2/expected.json", json.dumps([band()]).encode())
    put(root, "part_2/runs/train/summary.json", json.dumps({"val_loss": value, "device": device}).encode())


@pytest.mark.parametrize("value, code, said", [
    (1.3, 0, "inside"), (1.2, 0, "inside"), (1.1, 1, "Too good: is the text tiny?"),
    (1.5, 1, "Too few steps. See lesson 2.4: part_2/README.md")])
def test_verify_says_where_a_number_lies_and_what_that_means(tmp_path, capsys, value, code, said):
    numbers(tmp_path, value)
    before = tree(tmp_path)
    assert collector.main(["--verify"], tmp_path) == code
    assert said in capsys.readouterr().out
    assert tree(tmp_path) == before


def test_verify_reads_a_figure_s_numbers_and_says_on_what_device_the_band_was_measured(tmp_path, capsys):
    numbers(tmp_path, device="cuda")
    share = band("mfu", 0.3, 0.9, source="out/profiler.png", lesson="0.2")
    put(tmp_path, "part_0/expected.json", json.dumps([share]).encode())
    info = PngInfo()
    info.add_text("Numbers", '{"mfu": 0.58, "device": "cpu"}')
    (tmp_path / "part_0" / "out").mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "part_0" / "out" / "profiler.png", pnginfo=info)
    assert collector.main(["--verify"], tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "0.580" in lines[1] and lines[1].endswith("inside")
    assert lines[2].endswith("inside (measured on cuda, the band on cpu)")
    assert lines[-1] == "2 of 2 numbers lie inside their bands"


def test_verify_names_what_has_not_run_and_needs_something_that_has(tmp_path, capsys):
    put(tmp_path, "part_3/expected.json", json.dumps([band(command="python3 part_3/train.py")]).encode())
    assert collector.main(["--verify"], tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1
    numbers(tmp_path)
    assert collector.main(["--verify"], tmp_path) == 0
    out = capsys.readouterr().out
    assert "not run yet: python3 part_3/train.py" in out and "1 of 1 numbers lie inside their bands; 1 not run yet" in out


def test_the_numbers_stand_on_both_pages_and_stay_when_the_runs_are_gone(tmp_path):
    numbers(tmp_path, 1.2345)
    assert collector.main([], tmp_path) == 0
    (tmp_path / "part_2" / "runs" / "train" / "summary.json").unlink()
    assert collector.main([], tmp_path) == 0
    for name in ("README.md", "index.html"):
        page = (tmp_path / "screenshots" / name).read_text(encoding="utf-8").replace("\\", "")
        for text in ("val_loss, nats", "1.234", "1.200 to 1.400", "inside"):
            assert text in page


def test_the_table_at_the_end_has_a_line_a_part_with_minutes_figures_and_number(tmp_path, capsys):
    chain(tmp_path)
    (tmp_path / "part_2" / "demo_look.py").write_text("'''Lesson 2.2 - nothing to import.'''")
    numbers(tmp_path, 1.3)
    assert collector.main(["--run"], tmp_path) == 0
    table = capsys.readouterr().out.split("number\n")[1].splitlines()
    assert table[0].split()[-3:] == ["1", "0.0", "1"] and table[0].startswith("1 Transformer core")
    assert table[1].endswith("val_loss, nats 1.300")
    assert table[2].split() == ["all", "3", "0.0", "1"]


# --- The script in this repository -----------------------------------------------------------------------------------

def test_the_script_starts_from_any_folder_without_torch(tmp_path):
    put(tmp_path, "torch.py", b"raise SystemExit('torch is slow to import')")
    done = subprocess.run([sys.executable, collector.__file__, "--help"], cwd=tmp_path, capture_output=True, text=True,
                          encoding="utf-8", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert "--keep-going" in done.stdout


def test_every_figure_of_this_repository_carries_its_chunks_and_is_small():
    problems = []
    for path in sorted((Path(collector.__file__).parent / "screenshots").glob("*.png")):
        with Image.open(path) as image:
            missing = {"Title", "Description", "Command", "Seconds"} - image.text.keys()
        if missing or path.stat().st_size > 200 * 1024:
            problems.append((path.name, sorted(missing), path.stat().st_size))
    assert not problems
