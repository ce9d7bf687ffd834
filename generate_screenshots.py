"""Run the curriculum, collect its figures into screenshots/ with a page that shows them, and check its numbers.

    python3 generate_screenshots.py                            collect what the demos have drawn so far
    python3 generate_screenshots.py --run                      run every script first, in lesson order
    python3 generate_screenshots.py --run 1 5                  only those of parts 1 and 5
    python3 generate_screenshots.py --run part_1/demo_heads.py only this one (parts and scripts mix)
    python3 generate_screenshots.py --run --fresh              also those that are up to date
    python3 generate_screenshots.py --run --keep-going         go on after a script that fails
    python3 generate_screenshots.py --run --quick              every script with --quick, to see that all works here
    python3 generate_screenshots.py --verify                   are the last run's numbers where they should be?

--run leaves out what is up to date with its code, what it reads and the packages (part_0/up_to_date.py). Stopped, it goes on
where it was: at the script that was running, and a trainer that saves on the way goes on from what it has saved.

A demo draws into its part's out/ folder, which git ignores. part_1/out/heads.png becomes screenshots/part_1_heads.png,
and screenshots/README.md and screenshots/index.html (one file that needs nothing else, light and dark, phone and desk)
show all of screenshots/part_*.png. Title, caption, command and seconds come from the PNG's own text chunks, where
`part_0.plotting.save_figure` puts them; a figure without them is refused. With --run the page is written anew after
each part, a script's output goes to out/<script>.log, and the time of the whole script, noted in screenshots/seconds.json,
takes the place of the figure's own seconds. screenshots/numbers.json keeps the numbers that part_N/expected.json names.

A screenshot is removed only when the script that its command names has drawn figures again, and not this one.
Figures of --quick runs (out/quick) say so and are never collected. Exit codes: 0; 1 when a script failed or a number lies
outside its band; 2 for wrong input; 130 after Ctrl-C.
"""

import argparse
import ast
import functools
import io
import itertools
import json
import math
import os
import re
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from part_0 import up_to_date
from part_0.child_process import script_process
from part_0.cli import InputError
from part_0.expected_numbers import load_bands, measured
from part_0.gallery import PART_TITLES, RUN, gallery_page, number_cells, part_of, readme, show_number, show_seconds

ROOT = Path(__file__).resolve().parent
CHUNKS = ("Title", "Description", "Command", "Seconds")
LARGEST = 200 * 1024  # bytes of one figure: all of them stay in git, and in one page
SECONDS = "screenshots/seconds.json"  # how long each script took
NUMBERS = "screenshots/numbers.json"  # what the last full run gave
QUICK_AT_A_TIME = 2
PATIENCE = 10.0  # seconds that a stopped script gets to save what it has
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


@functools.cache
def text_chunks(data):
    """What the PNG in `data` says of itself, {name: text}. Kept, because the chunks stand behind the image, which must be
    decoded first, and every part's collecting asks for all figures again."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return {name: image.text.get(name, "").strip() for name in CHUNKS}


def read_figure(root, path):
    """The Figure in the PNG at `path`; InputError when it is damaged or does not say what it shows and what drew it."""
    where, data = path.relative_to(root).as_posix(), path.read_bytes()
    try:
        chunks = text_chunks(data)
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
    stored, rows = stored_figures(root), [number_cells(band, *found) for band, found in stored_numbers(root).items()]
    write_file(folder / "README.md", readme(stored, rows).encode("utf-8"))
    write_file(folder / "index.html", gallery_page(stored, rows).encode("utf-8"))
    return len(new)


def stored_numbers(root):
    """{Band: (value, device)} of every number that the runs here gave, or else that screenshots/numbers.json remembers."""
    remembered, found = read_json(root / NUMBERS), {}
    for band in load_bands(root):
        key = f"part_{band.part}/{band.source} {band.metric}"
        if (here := measured(root, band)) is not None:
            remembered[key] = list(here)
        if key in remembered:
            found[band] = tuple(remembered[key])
    if found:
        write_json(root / NUMBERS, remembered)
    return found


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


def read_json(path):
    """The dict in a JSON file; {} when there is none, or it is damaged: all that is kept so is measured again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path, content):
    """A dict as a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode("utf-8"))


def read_seconds(root):
    """How long each script took when it last ran, {path: seconds}; with the figures in git, so that a first run can say
    what to expect."""
    return {path: seconds for path, seconds in read_json(root / SECONDS).items() if isinstance(seconds, (int, float))}


def expected_seconds(root, script, stored):
    """The last measured time of `script`; else the time its latest stored figure carries; else None."""
    drawn = [figure.seconds for figure in stored if figure.script == script.path]
    return read_seconds(root).get(script.path, max(drawn, default=None))


def run_child(root, words, log, tick, one_thread=False):
    """Run the script and flags `words` from the root, with their output in the file `log`, calling tick(seconds) meanwhile.

    Returns the exit code. The child does not outlive this call, Ctrl-C included; a signal lets a trainer save first.
    """
    started = time.monotonic()
    child = script_process(root, *words, log=log, one_thread=one_thread)
    child.start()
    try:
        while True:
            tick(time.monotonic() - started)
            child.join(TICK)
            if child.exitcode is not None:
                return child.exitcode
    finally:
        if child.exitcode is None:
            child.terminate()
            child.join(PATIENCE)
            if child.exitcode is None:
                child.kill()
                child.join()


def run_one(root, script, tick, flags=(), quick=False):
    """Run `script` with `flags`. Returns (the figures it drew, seconds); ScriptFailed, with its last lines, when it did not
    succeed.

    Its figures in out/ that this run did not draw again are removed, as the present code makes them no more. With `quick`
    figures go to out/quick and nothing is removed.
    """
    out = root / f"part_{script.part}" / "out" / ("quick" if quick else "")
    out.mkdir(parents=True, exist_ok=True)
    log = out / f"{Path(script.name).stem}.log"
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    started = time.monotonic()
    code = run_child(root, [script.path, *flags, *(["--quick"] if quick else [])], log, tick, one_thread=quick)
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
    return figures, seconds


def run_and_record(root, script, tick, mark):
    """Run `script` with its defaults and keep a record of it. Returns (the figures it drew, seconds); as `run_one`.

    mark: its fingerprint. A trainer that was cut off with the same fingerprint, and can resume, goes on.
    """
    record_file, runs = up_to_date.record_path(root, script.path), root / f"part_{script.part}" / "runs"
    was_begun = up_to_date.read_record(root, script.path).get("begun") == mark
    flags = []
    if was_begun and "--resume auto" in docstring_of(root / script.path):
        begun = record_file.stat().st_mtime_ns  # a run that was there before may be another's
        own = [path for path in runs.glob("*/config.json") if "quick" not in path.parent.name]
        if any(path.stat().st_mtime_ns >= begun for path in own):
            flags = ["--resume", "auto"]
    if not flags:
        write_json(record_file, {"begun": mark})
    started = time.time_ns()
    figures, seconds = run_one(root, script, tick, flags)
    outputs = [figure.path for figure in figures]
    if not script.is_demo:
        outputs += [path for pattern in ("*/best.pt", "*/*.tiktoken") for path in runs.glob(pattern)
                    if path.stat().st_mtime_ns >= started]
    write_json(record_file, {"fingerprint": mark, "outputs": {
        path.relative_to(root).as_posix(): up_to_date.hash_of_file(path) for path in sorted(outputs)}})
    write_json(root / SECONDS, {**read_seconds(root), script.path: round(seconds, 1)})
    return figures, seconds


def docstring_of(path):
    """The docstring of a Python file; empty when it cannot be read as one."""
    try:
        return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except SyntaxError:
        return ""


def show_tick(bar, script, expected, left, seconds):
    """Tell on the bar what runs, for how long, and how much is left of all the time that is expected."""
    bar.set_description_str(f"part {script.part} {script.name} {show_seconds(seconds)} {expected}; "
                            f"{show_seconds(max(0.0, left - seconds))} left")


def progress_bar(n):
    """A bar for `n` scripts; none unless on a terminal."""
    return tqdm(total=n, disable=None, leave=False, dynamic_ncols=True, bar_format="{n_fmt}/{total_fmt} |{bar:16}| {desc}")


def run_all(root, scripts, before, keep_going, fresh):
    """Run `scripts` in order, but for those that are up to date unless `fresh`; after each part collect the figures of
    those that succeeded.

    before: {path: the trainers before it} of all scripts. Returns (number of figures collected, [scripts that failed]).
    Unless keep_going, nothing runs after a failure.
    """
    stored, count, failed = stored_figures(root), 0, []
    times = {script: expected_seconds(root, script, stored) for script in scripts}
    with progress_bar(len(scripts)) as bar:
        for _, group in itertools.groupby(scripts, lambda script: script.part):
            drawn = {}
            for script in group:
                i = scripts.index(script)
                head = f"[{i + 1}/{len(scripts)}] {script.path} ..."
                mark = up_to_date.fingerprint(root, script.path, before[script.path])
                if not fresh and up_to_date.is_up_to_date(root, script.path, mark):
                    say(f"{head} up to date")
                    drawn[script.path] = [figure for figure in drawn_figures(root, script.part, strict=False)
                                          if figure.script == script.path]
                    bar.update()
                    continue
                left = sum(times[one] or 0.0 for one in scripts[i:])
                expected = f"(expected {show_seconds(times[script])})"
                if bar.disable:
                    say(f"{head} {expected}")
                try:
                    drawn[script.path], seconds = run_and_record(
                        root, script, functools.partial(show_tick, bar, script, expected, left), mark)
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


def run_quick(root, scripts, keep_going):
    """Run `scripts` with --quick: the trainers in order, then the demos, a few at a time on a thread each.

    Returns ({script: (number of figures, seconds)}, [scripts that failed]). Nothing is collected.
    """
    done, failed, stop = {}, [], threading.Event()

    def tick(seconds):
        if stop.is_set():
            raise KeyboardInterrupt

    with progress_bar(len(scripts)) as bar, ThreadPoolExecutor(QUICK_AT_A_TIME) as pool:
        def run(script):
            if stop.is_set():
                return
            bar.set_description_str(f"part {script.part} {script.name} --quick")
            try:
                figures, seconds = run_one(root, script, tick, quick=True)
                done[script] = len(figures), seconds
                say(f"{script.path} --quick ... {show_seconds(seconds)}")
            except (ScriptFailed, InputError) as error:
                failed.append(script)
                say(f"{script.path} --quick ... failed\n{error}")
                if not keep_going:
                    stop.set()
            except KeyboardInterrupt:  # the others' end
                pass
            bar.update()

        try:
            for script in scripts:
                if not script.is_demo:
                    run(script)
            list(pool.map(run, [script for script in scripts if script.is_demo]))
        finally:
            stop.set()
    return done, failed


# --- The command line ------------------------------------------------------------------------------------------------

def collect_all(root):
    """Collect all that lies in the out/ folders. Returns the number of figures."""
    drawn = {}
    for figure in drawn_figures(root):
        drawn.setdefault(figure.script, []).append(figure)
    return collect(root, drawn)


def trainers_before(scripts):
    """{path: the paths of the trainers that come before it} for all `scripts`, a dict in order."""
    before, trainers = {}, []
    for script in scripts.values():
        before[script.path] = tuple(trainers)
        if not script.is_demo:
            trainers.append(script.path)
    return before


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


def print_table(root, results, numbers):
    """A line for each part: its scripts, their minutes, its figures, and the one number that it is about.

    results: {script: (number of figures, seconds)}; numbers: {Band: (value, device)}, of which a part's first is shown.
    """
    print(f"\n{'part':32s}{'scripts':>8s}{'minutes':>9s}{'figures':>9s}   number")
    total = [0, 0.0, 0]
    for part, group in itertools.groupby(results, lambda script: script.part):
        own = [results[script] for script in group]
        sums = [len(own), sum(seconds for _, seconds in own) / 60, sum(n for n, _ in own)]
        total = [a + b for a, b in zip(total, sums)]
        first = next(((band, found) for band, found in numbers.items() if band.part == part), None)
        shown = f"{first[0].label} {show_number(first[1][0])}" if first else ""
        print(f"{f'{part} {PART_TITLES[part]}':32s}{sums[0]:8d}{sums[1]:9.1f}{sums[2]:9d}   {shown}".rstrip())
    print(f"{'all':32s}{total[0]:8d}{total[1]:9.1f}{total[2]:9d}")


def verify(root):
    """Print each number of the last run beside its band, and of those outside what that usually means. Returns how many lie
    outside. InputError when there is none at all."""
    bands = load_bands(root)
    found = {band: measured(root, band) for band in bands}
    if not any(found.values()):
        raise InputError(f"there are no numbers to verify yet; {RUN} makes them")
    n_outside = 0
    print(f"{'lesson':8s}{'number':52s}{'here':>10s}  {'usual':20s}")
    for band, here in found.items():
        usual = f"{show_number(band.low)} to {show_number(band.high)}"
        if here is None:
            print(f"{band.lesson:8s}{band.label:52s}{'-':>10s}  {usual:20s}not run yet: {band.command}")
            continue
        value, device = here
        other = "" if device == band.device else f" (measured on {device}, the band on {band.device})"
        print(f"{band.lesson:8s}{band.label:52s}{show_number(value):>10s}  {usual:20s}{band.place(value)}{other}")
        if band.place(value) != "inside":
            n_outside += 1
            print(textwrap.fill(f"{band.meaning(value)} See lesson {band.lesson}: part_{band.part}/README.md", 110,
                                initial_indent=" " * 8, subsequent_indent=" " * 8))
    n_found = sum(here is not None for here in found.values())
    print(f"{n_found - n_outside} of {n_found} numbers lie inside their bands"
          + (f"; {len(found) - n_found} not run yet" if n_found < len(found) else ""))
    return n_outside


def parse(argv):
    """The flags; an error in them ends in one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, prog="generate_screenshots.py",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message} (--help lists the flags)\n")
    parser.add_argument("--run", nargs="*", metavar="PART_OR_SCRIPT",
                        help="run these first, e.g. 1, part_1 or part_1/demo_heads.py; without a name all")
    parser.add_argument("--fresh", action="store_true", help="with --run: run also what is up to date")
    parser.add_argument("--quick", action="store_true",
                        help="with --run: every script with --quick, in minutes; nothing is collected")
    parser.add_argument("--keep-going", action="store_true", help="with --run: go on after a script that fails")
    parser.add_argument("--verify", action="store_true", help="compare the last run's numbers with their bands")
    options = parser.parse_args(argv)
    for flag in ("keep_going", "fresh", "quick"):
        if getattr(options, flag) and options.run is None:
            parser.error(f"--{flag.replace('_', '-')} needs --run")
    if options.quick and (options.verify or options.fresh):
        parser.error(f"--quick goes without {'--verify: its numbers say nothing' if options.verify else '--fresh'}")
    return options


def main(argv=None, root=ROOT):
    """Run, collect and verify as the flags say, in the repository at `root`. Returns the exit code."""
    options, root, failed, n_outside = parse(argv), Path(root).resolve(), [], 0
    try:
        scripts = find_scripts(root)
        chosen = select(root, options.run or [], scripts)
        if options.quick:
            results, failed = run_quick(root, chosen, options.keep_going)
            print_table(root, {script: results[script] for script in chosen if script in results}, {})
            print("quick runs only show that all works: their figures, in part_N/out/quick, say so, and are not collected")
        elif options.run is not None:
            count, failed = run_all(root, chosen, trainers_before(scripts), options.keep_going, options.fresh)
            report(root, scripts, count)
            seconds, drawn = read_seconds(root), [figure.script for figure in drawn_figures(root, strict=False)]
            print_table(root, {script: (drawn.count(script.path), seconds.get(script.path, 0.0)) for script in chosen},
                        stored_numbers(root))
        elif not options.verify:
            report(root, scripts, collect_all(root))
        if options.verify:
            n_outside = verify(root)
    except InputError as error:
        print(f"generate_screenshots.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "; the same command goes on from here" if options.run is not None else ""
        print(f"generate_screenshots.py: stopped by Ctrl-C{again}", file=sys.stderr)
        return 130
    if failed:
        print(f"{len(failed)} failed: {', '.join(script.path for script in failed)}", file=sys.stderr)
    return 1 if failed or n_outside else 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a Windows console may not be UTF-8: show what it can
        stream.reconfigure(encoding="utf-8", errors="replace")
    sys.exit(main())
