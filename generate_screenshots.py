"""Collect the figures of all demos into screenshots/, with a page that shows them.

    python3 generate_screenshots.py                            collect what the demos have drawn so far
    python3 generate_screenshots.py --run                      run every script first, in lesson order
    python3 generate_screenshots.py --run 1 5                  only those of parts 1 and 5
    python3 generate_screenshots.py --run part_1/demo_heads.py only this one (parts and scripts mix)
    python3 generate_screenshots.py --run --keep-going         go on after a script that fails

A demo draws into its part's out/ folder, which git ignores. part_1/out/heads.png becomes screenshots/part_1_heads.png,
and screenshots/README.md and screenshots/index.html (one file that needs nothing else, light and dark, phone and desk)
show all of screenshots/part_*.png. Title, caption, command and seconds come from the PNG's own text chunks, where
`part_0.plotting.save_figure` puts them; a figure without them is refused. With --run the page is written anew after
each part, a script's output goes to out/<script>.log, and the time of the whole script, noted in screenshots/seconds.json,
takes the place of the figure's own seconds.

A screenshot is removed only when the script that its command names has drawn figures again, and not this one.
Figures of --quick runs (out/quick) are never collected. Exit codes: 0, 1 when a script failed, 2 for wrong input,
130 after Ctrl-C.
"""

import argparse
import ast
import base64
import functools
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from PIL import Image
from tqdm import tqdm

from part_0.cli import InputError

ROOT = Path(__file__).resolve().parent
PART_TITLES = {0: "Foundations", 1: "Transformer core", 2: "Training a tiny language model", 3: "Modern architecture",
               4: "Scaling up", 5: "Mixture of experts", 6: "Supervised fine-tuning", 7: "Reward model", 8: "PPO",
               9: "GRPO"}
CHUNKS = ("Title", "Description", "Command", "Seconds")
LARGEST = 200 * 1024  # bytes of one figure: all of them stay in git, and in one page
SECONDS = "screenshots/seconds.json"  # how long each script took
LAST_LINES = 15
TICK = 1.0  # seconds between two refreshes of the progress bar


class ScriptFailed(Exception):
    """A script that was run ended with an error; the message holds the last lines it printed."""


# --- What there is: scripts and figures ------------------------------------------------------------------------------

@dataclass(frozen=True)
class Script:
    """A demo or trainer; path is relative to the root, with forward slashes: "part_1/demo_heads.py"."""

    path: str
    part: int
    name: str
    lesson: tuple

    @property
    def is_demo(self):
        return self.name.startswith("demo_")


@dataclass(frozen=True)
class Figure:
    """A PNG and what its text chunks say; `script` is the path that its command names."""

    path: Path
    data: bytes
    title: str
    caption: str
    command: str
    seconds: float
    script: str


def lesson_number(source):
    """(1, 4) from a module whose docstring opens "Lesson 1.4 - ..."; a module without a number comes last."""
    try:
        docstring = ast.get_docstring(ast.parse(source)) or ""
    except SyntaxError:  # running it will tell
        docstring = ""
    found = re.match(r"Lessons?\s+(\d+(?:\.\d+)*)", docstring)
    return tuple(map(int, found[1].split("."))) if found else (math.inf,)


def find_scripts(root):
    """Every part_N/demo_*.py and part_N/train*.py under `root` as {path: Script}, in lesson order.

    Within a lesson the training comes first, then the demos that look at what was trained.
    """
    scripts = []
    for path in [*root.glob("part_[0-9]/demo_*.py"), *root.glob("part_[0-9]/train*.py")]:
        lesson = lesson_number(path.read_text(encoding="utf-8"))
        scripts.append(Script(path.relative_to(root).as_posix(), int(path.parent.name[-1]), path.name, lesson))
    scripts.sort(key=lambda script: (script.part, script.lesson, script.is_demo, script.name))
    return {script.path: script for script in scripts}


def read_figure(root, path):
    """The Figure in the PNG at `path`; InputError when it is damaged or does not say what it shows and what drew it."""
    where, data = path.relative_to(root).as_posix(), path.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            chunks = {name: image.text.get(name, "").strip() for name in CHUNKS}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{where} cannot be read as a PNG; delete it or draw it again") from error
    if not data.endswith(b"IEND\xaeB`\x82"):  # the last chunk of every PNG, which Pillow does not insist on
        raise InputError(f"{where} is a PNG cut short; delete it or draw it again")
    if missing := [name for name in CHUNKS if not chunks[name]]:
        raise InputError(f"{where} has no text chunk {', '.join(missing)}; delete it, or save it with "
                         "part_0.plotting.save_figure")
    script = re.search(r"part_\d/\w+\.py", chunks["Command"])
    if not script:
        raise InputError(f"{where}: its Command names no script of a part: {chunks['Command']!r}")
    if not re.fullmatch(r"\d+(\.\d+)?", chunks["Seconds"]):
        raise InputError(f"{where}: its Seconds is no number: {chunks['Seconds']!r}")
    return Figure(path, data, chunks["Title"], chunks["Description"], chunks["Command"], float(chunks["Seconds"]),
                  script[0])


def drawn_figures(root, part="[0-9]", strict=True):
    """The figures in part_N/out of all parts, or of one (quick runs draw one folder deeper).

    Not strict: those that `read_figure` refuses are left out.
    """
    figures = []
    for path in sorted(root.glob(f"part_{part}/out/*.png")):
        try:
            figures.append(read_figure(root, path))
        except InputError:
            if strict:
                raise
    return figures


def stored_figures(root):
    """The figures in screenshots/, by part, then in the order of the lessons that draw them, then by name.

    Their seconds are those that --run measured for the whole script, where it did: a script cannot see its own start.
    """
    order = {path: index for index, path in enumerate(find_scripts(root))}
    measured = {f"python3 {path}": seconds for path, seconds in read_seconds(root).items()}  # run without flags
    figures = [read_figure(root, path) for path in (root / "screenshots").glob("part_[0-9]_*.png")]
    figures = [replace(figure, seconds=measured.get(figure.command, figure.seconds)) for figure in figures]
    return sorted(figures, key=lambda figure: (part_of(figure), order.get(figure.script, len(order)), figure.path.name))


def part_of(figure):
    """1 for screenshots/part_1_heads.png."""
    return int(figure.path.name[len("part_")])


# --- The gallery -----------------------------------------------------------------------------------------------------

def write_file(path, data):
    """Write bytes so that `path` holds the old or the new content, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def collect(root, drawn):
    """Copy figures into screenshots/ and write its two pages. Returns the number of figures copied.

    drawn: {script path: [its figures]}. What screenshots/ holds of these scripts and is not among them is removed.
    """
    folder = root / "screenshots"
    old = stored_figures(root)  # read before the first write, so that a damaged one stops here
    new = {f"{figure.path.parts[-3]}_{figure.path.name}": figure for figures in drawn.values() for figure in figures}
    folder.mkdir(exist_ok=True)
    for name, figure in new.items():
        write_file(folder / name, figure.data)
        if len(figure.data) > LARGEST:
            say(f"warning: {figure.path.relative_to(root).as_posix()} has {len(figure.data) / 1024:.0f} KiB, above "
                f"{LARGEST // 1024} KiB")
    for figure in old:
        if figure.script in drawn and figure.path.name not in new:
            figure.path.unlink()
    stored = stored_figures(root)
    write_file(folder / "README.md", readme(stored).encode("utf-8"))
    write_file(folder / "index.html", gallery_page(stored).encode("utf-8"))
    return len(new)


def show_seconds(seconds):
    """0.42 -> "0.4 s", 12.3 -> "12 s", 200 -> "3 min 20 s"; None -> "?"."""
    if seconds is None or seconds < 9.95:
        return "?" if seconds is None else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def part_title(part):
    """2 -> "Part 2: Training a tiny language model"."""
    return f"Part {part}: {PART_TITLES[part]}"


def markdown(text):
    """Plain text as Markdown: what Markdown, HTML or GitHub's $math$ would take as markup gets a backslash."""
    text = re.sub(r"([\\`*_\[\]<>#&$~|])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", text)  # at the start of a line these would open a list


def readme(figures):
    """screenshots/README.md as text. figures: in the order to show."""
    lines = ["# Figures", "", "Every figure is drawn by one demo and carries its title, caption and command inside the "
             "PNG file. `python3 generate_screenshots.py` collects them and writes this page, and beside it "
             "`index.html`, the same gallery as one file for the browser.", ""]
    for part, group in itertools.groupby(figures, part_of):
        lines += [f"## {part_title(part)}", ""]
        for figure in group:
            caption = markdown(figure.caption)
            lines += [f"### {markdown(figure.title)}", "", f"![{caption}]({quote(figure.path.name)})", "", caption, "",
                      "```bash", figure.command, "```", "", f"Drawn in {show_seconds(figure.seconds)}.", ""]
    if not figures:
        lines += ["No figures yet: `python3 generate_screenshots.py --run` draws them.", ""]
    return "\n".join(lines)


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>LLM from Scratch (PyTorch): the figures</title>
<style>
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --text: #1d2430; --soft: #566072; --line: #d5dae2;
  --accent: #005a92; --code: #eef1f5; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1c212a; --text: #e7eaf0; --soft: #a9b3c3;
  --line: #353d4b; --accent: #7cc4f5; --code: #12151b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1rem clamp(1rem, 3vw, 2.5rem) 3rem; background: var(--page);
  color: var(--text); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; text-wrap: balance; }
h1 { margin: .5rem 0; font-size: clamp(1.5rem, 5vw, 2rem); }
h2 { margin: 2.5rem 0 1rem; } h3 { margin: 0 0 .75rem; font-size: 1.1rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 3px; border-radius: 4px; }
main:focus { outline: none; }
.skip { position: absolute; left: -100vw; } .skip:focus { position: static; }
nav ul { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1rem 0; padding: 0; list-style: none; }
nav a { display: block; padding: .4rem .8rem; border: 1px solid var(--line); border-radius: 99px;
  background: var(--card); text-decoration: none; }
nav a:hover { border-color: var(--accent); }
.grid { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)); }
article { min-width: 0; padding: 1rem; border: 1px solid var(--line); border-radius: 10px; background: var(--card);
  scroll-margin-top: 1rem; }
article:target { grid-column: 1 / -1; border-color: var(--accent); }
figure { margin: 0; }
figcaption { margin-top: .75rem; }
.open { display: block; cursor: zoom-in; }
img { display: block; max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
.open img { margin: 0 auto; padding: .4rem; }
pre { margin: .75rem 0 .4rem; padding: .5rem .75rem; border-radius: 6px; background: var(--code);
  white-space: pre-wrap; }
code { font: .9rem/1.5 ui-monospace, Consolas, monospace; }
.soft { margin: 0; color: var(--soft); font-size: .9rem; }
dialog { max-width: 96vw; max-height: 96vh; padding: .75rem; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); color: var(--text); }
dialog::backdrop { background: rgb(0 0 0 / .7); }
dialog div { overflow: auto; max-height: 82vh; }
dialog img { max-width: none; }
button { margin-bottom: .75rem; padding: .4rem 1rem; font: inherit; }
</style>
</head>
<body id="top">
<a class="skip" href="#figures">Skip to the figures</a>
<header>
<h1>LLM from Scratch (PyTorch): the figures</h1>
<p>Every figure is drawn by one demo; under it stands what it shows and the command that draws it. Choose a figure to
see it at full size.</p>
<nav aria-label="Parts"><ul>
$links
</ul></nav>
</header>
<main id="figures" tabindex="-1">
$sections
</main>
<footer><p><a href="#top">Back to the top</a></p></footer>
<dialog aria-label="The figure at full size"><form method="dialog"><button>Close</button></form>
<div tabindex="0" role="group" aria-label="Figure, scrollable"></div></dialog>
<script>
// A figure opens in a dialog, which brings Esc, Tab and the way back. Without script its link widens it in the page.
const dialog = document.querySelector("dialog");
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.open");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    dialog.querySelector("div").replaceChildren(link.querySelector("img").cloneNode());
    dialog.showModal();
  } else if (event.target === dialog) dialog.close();
});
</script>
</body>
</html>
""")
SECTION = Template("""<section aria-labelledby="part-$part"><h2 id="part-$part">$title</h2><div class="grid">
$cards
</div></section>""")
CARD = Template("""<article id="$anchor"><h3>$title</h3>
<figure><a class="open" href="#$link"><img alt="$caption" src="data:image/png;base64,$image"></a>
<figcaption>$caption</figcaption></figure>
<pre><code>$command</code></pre><p class="soft">Drawn in $seconds</p></article>""")


def gallery_page(figures):
    """screenshots/index.html as text, with the images inside. figures: in the order to show."""
    links, sections = [], []
    for part, group in itertools.groupby(figures, part_of):
        title = escape(part_title(part))
        cards = [CARD.substitute(
            anchor=escape(figure.path.stem), link=quote(figure.path.stem), title=escape(figure.title),
            caption=escape(figure.caption), command=escape(figure.command), seconds=show_seconds(figure.seconds),
            image=base64.b64encode(figure.data).decode("ascii")) for figure in group]
        links.append(f'<li><a href="#part-{part}">{title}</a></li>')
        sections.append(SECTION.substitute(part=part, title=title, cards="\n".join(cards)))
    empty = "<p>No figures yet: <code>python3 generate_screenshots.py --run</code> draws them.</p>"
    return PAGE.substitute(links="\n".join(links), sections="\n".join(sections) or empty)


# --- Running the scripts ---------------------------------------------------------------------------------------------

def say(line):
    """Print a line to stderr, above the progress bar where there is one."""
    tqdm.write(line, file=sys.stderr)


def select(root, words, scripts):
    """The scripts that `words` ("1", "part_1", "part_1/demo_heads.py") name, in lesson order; no words: all."""
    chosen = set()
    for word in words:
        path = (root / (f"part_{int(word)}" if word.isdecimal() else word)).resolve()
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else word
        found = {script.path for script in scripts.values() if name in (script.path, f"part_{script.part}")}
        if not found:
            parts = " ".join(map(str, sorted({script.part for script in scripts.values()})))
            raise InputError(f"no part or script {word!r}; parts with scripts: {parts or 'none'}; a script is named "
                             "like part_1/demo_heads.py")
        chosen |= found
    return [script for script in scripts.values() if script.path in chosen or not words]


def read_seconds(root):
    """How long each script took when it last ran, {path: seconds}; with the figures in git, so that a first run can say
    what to expect."""
    try:
        content = json.loads((root / SECONDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # only an estimate for the bar: absent or damaged, it is measured again
        return {}
    times = content if isinstance(content, dict) else {}
    return {path: seconds for path, seconds in times.items() if isinstance(seconds, (int, float))}


def write_seconds(root, script, seconds):
    """Note how long a script took."""
    (root / SECONDS).parent.mkdir(exist_ok=True)
    times = {**read_seconds(root), script.path: round(seconds, 1)}
    write_file(root / SECONDS, (json.dumps(times, indent=1, sort_keys=True) + "\n").encode("utf-8"))


def expected_seconds(root, script, stored):
    """The last measured time of `script`; else the time its latest stored figure carries; else None."""
    drawn = [figure.seconds for figure in stored if figure.script == script.path]
    return read_seconds(root).get(script.path, max(drawn, default=None))


def run_child(root, script, log, tick):
    """Run `script` from the root with its output in the file `log`, calling tick(seconds) on the way.

    Returns the exit code. The child does not outlive this call, Ctrl-C included.
    """
    started = time.monotonic()
    with open(log, "wb") as output:
        child = subprocess.Popen([sys.executable, script.path], cwd=root, stdin=subprocess.DEVNULL, stdout=output,
                                 stderr=subprocess.STDOUT, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
        try:
            while True:
                tick(time.monotonic() - started)
                try:
                    return child.wait(timeout=TICK)
                except subprocess.TimeoutExpired:
                    pass
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


def run_one(root, script, tick):
    """Run `script`. Returns (the figures it drew, seconds); ScriptFailed, with its last lines, when it did not succeed.

    Its figures in out/ that this run did not draw again are removed: the present code makes them no more.
    """
    out = root / f"part_{script.part}" / "out"
    out.mkdir(exist_ok=True)
    log = out / f"{Path(script.name).stem}.log"
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    started = time.monotonic()
    code = run_child(root, script, log, tick)
    seconds = time.monotonic() - started
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        head = (f"{script.path} failed with exit code {code} after {show_seconds(seconds)}; "
                f"the end of {log.relative_to(root).as_posix()}:")
        raise ScriptFailed("\n    ".join([head, *lines]))
    new = [path for path in sorted(out.glob("*.png")) if path.stat().st_mtime_ns != before.get(path)]
    figures = [figure for figure in (read_figure(root, path) for path in new) if figure.script == script.path]
    for figure in drawn_figures(root, script.part, strict=False):
        if figure.script == script.path and figure.path in before and figure.path not in new:
            figure.path.unlink()
    write_seconds(root, script, seconds)
    return figures, seconds


def show_tick(bar, script, expected, seconds):
    bar.set_description_str(f"part {script.part} {script.name} {show_seconds(seconds)} {expected}")


def run_all(root, scripts, keep_going):
    """Run `scripts` in order; after each part collect the figures of those that succeeded.

    Returns (number of figures collected, [scripts that failed]). Unless keep_going, nothing runs after a failure.
    """
    stored, count, failed = stored_figures(root), 0, []
    with tqdm(total=len(scripts), disable=None, leave=False, dynamic_ncols=True,
              bar_format="{n_fmt}/{total_fmt} |{bar:16}| {desc}") as bar:  # disable=None: no bar unless on a terminal
        for _, group in itertools.groupby(scripts, lambda script: script.part):
            drawn = {}
            for script in group:
                head = f"[{scripts.index(script) + 1}/{len(scripts)}] {script.path} ..."
                expected = f"(expected {show_seconds(expected_seconds(root, script, stored))})"
                if bar.disable:
                    say(f"{head} {expected}")
                try:
                    drawn[script.path], seconds = run_one(
                        root, script, functools.partial(show_tick, bar, script, expected))
                    say(f"{head} {show_seconds(seconds)} {expected}")
                except (ScriptFailed, InputError) as error:
                    failed.append(script)
                    say(f"{head} failed\n{error}")
                    if not keep_going:
                        break
                bar.update()
            count += collect(root, drawn)
            if failed and not keep_going:
                break
    return count, failed


# --- The command line ------------------------------------------------------------------------------------------------

def collect_all(root):
    """Collect all that lies in the out/ folders. Returns the number of figures."""
    drawn = {}
    for figure in drawn_figures(root):
        drawn.setdefault(figure.script, []).append(figure)
    return collect(root, drawn)


def report(root, scripts, count):
    """Print what was collected, the demos still to run with their commands, and figures whose script is gone."""
    print(f"{count} figure{'' if count == 1 else 's'} collected; the gallery is screenshots/index.html")
    done = {figure.script for figure in drawn_figures(root, strict=False)}
    missing = [script.path for script in scripts.values() if script.is_demo and script.path not in done]
    if missing:
        print("No figure in out/ yet from:", *(f"    python3 {path}" for path in missing), sep="\n")
    for figure in stored_figures(root):
        if figure.script not in scripts:
            print(f"screenshots/{figure.path.name} is by {figure.script}, which is not here; renamed? delete it")


def parse(argv):
    """The flags; an error in them ends in one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, prog="generate_screenshots.py",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message} (--help lists the flags)\n")
    parser.add_argument("--run", nargs="*", metavar="PART_OR_SCRIPT",
                        help="run these first, e.g. 1, part_1 or part_1/demo_heads.py; without a name all")
    parser.add_argument("--keep-going", action="store_true", help="with --run: go on after a script that fails")
    options = parser.parse_args(argv)
    if options.keep_going and options.run is None:
        parser.error("--keep-going needs --run")
    return options


def main(argv=None, root=ROOT):
    """Run and collect as the flags say, in the repository at `root`. Returns the exit code."""
    options, root, failed = parse(argv), Path(root).resolve(), []
    try:
        scripts = find_scripts(root)
        if options.run is None:
            count = collect_all(root)
        else:
            count, failed = run_all(root, select(root, options.run, scripts), options.keep_going)
        report(root, scripts, count)
    except InputError as error:
        print(f"generate_screenshots.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("generate_screenshots.py: stopped by Ctrl-C", file=sys.stderr)
        return 130
    if failed:
        print(f"{len(failed)} failed: {', '.join(script.path for script in failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a Windows console may not be UTF-8: show what it can
        stream.reconfigure(encoding="utf-8", errors="replace")
    sys.exit(main())
