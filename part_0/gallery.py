"""Lesson 0.2 - the gallery: all figures with their captions, and the numbers, as Markdown and as one page for the browser.

`generate_screenshots.py` writes both. The page refers to nothing outside itself: it opens without network, from a mail,
years later.
"""

import base64
import itertools
import re
from html import escape
from string import Template
from urllib.parse import quote

PART_TITLES = {0: "Foundations", 1: "Transformer core", 2: "Training a tiny language model", 3: "Modern architecture",
               4: "Scaling up", 5: "Mixture of experts", 6: "Supervised fine-tuning", 7: "Reward model", 8: "PPO",
               9: "GRPO"}
RUN = "python3 generate_screenshots.py --run"


def show_seconds(seconds):
    """0.42 -> "0.4 s", 12.3 -> "12 s", 200 -> "3 min 20 s"; None -> "?"."""
    if seconds is None or seconds < 9.95:
        return "?" if seconds is None else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def show_number(value):
    """A number with three or four digits that count: 1.313, 0.9400, 12.40."""
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3f}"


def part_of(figure):
    """1 for screenshots/part_1_heads.png."""
    return int(figure.path.name[len("part_")])


def part_title(part):
    """2 -> "Part 2: Training a tiny language model"."""
    return f"Part {part}: {PART_TITLES[part]}"


def number_cells(band, value, device):
    """A row of the table of numbers: lesson, what, value, band and verdict, as texts."""
    span = f"{show_number(band.low)} to {show_number(band.high)}"
    where = band.place(value) if device == band.device else f"{band.place(value)} (the band is of a {band.device})"
    return [band.lesson, band.label, show_number(value), span, where]


HEADINGS = ("lesson", "number", "here", "usual", "it lies")


def markdown(text):
    """Plain text as Markdown: what Markdown, HTML or GitHub's $math$ would take as markup gets a backslash."""
    text = re.sub(r"([\\`*_\[\]<>#&$~|])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", text)  # at the start of a line these would open a list


def readme(figures, numbers=()):
    """screenshots/README.md as text. figures: in the order to show; numbers: rows of `number_cells`."""
    lines = ["# Figures", "", "Every figure is drawn by one demo and carries its title, caption and command inside the "
             "PNG file. `python3 generate_screenshots.py` collects them and writes this page, and beside it "
             "`index.html`, the same gallery as one file for the browser.", ""]
    if numbers:
        lines += ["## The numbers", "", "What the last full run gave, and where other seeds fell; "
                  "`python3 generate_screenshots.py --verify` compares your own.", "",
                  f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS),
                  *("| " + " | ".join(map(markdown, row)) + " |" for row in numbers), ""]
    for part, group in itertools.groupby(figures, part_of):
        lines += [f"## {part_title(part)}", ""]
        for figure in group:
            caption = markdown(figure.caption)
            lines += [f"### {markdown(figure.title)}", "", f"![{caption}]({quote(figure.path.name)})", "", caption, "",
                      "```bash", figure.command, "```", "", f"Drawn in {show_seconds(figure.seconds)}.", ""]
    if not figures:
        lines += [f"No figures yet: `{RUN}` draws them.", ""]
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
.wide { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); }
th, td { padding: .4rem .75rem; border: 1px solid var(--line); text-align: left; overflow-wrap: normal; }
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
NUMBERS = Template("""<section aria-labelledby="numbers"><h2 id="numbers">The numbers</h2>
<p>What the last full run gave, and where other seeds fell.</p>
<div class="wide" tabindex="0" role="group" aria-label="Table, scrollable"><table><thead><tr>$headings</tr></thead><tbody>
$rows
</tbody></table></div></section>""")
SECTION = Template("""<section aria-labelledby="part-$part"><h2 id="part-$part">$title</h2><div class="grid">
$cards
</div></section>""")
CARD = Template("""<article id="$anchor"><h3>$title</h3>
<figure><a class="open" href="#$link"><img alt="$caption" src="data:image/png;base64,$image"></a>
<figcaption>$caption</figcaption></figure>
<pre><code>$command</code></pre><p class="soft">Drawn in $seconds</p></article>""")


def gallery_page(figures, numbers=()):
    """screenshots/index.html as text, with the images inside. figures: in the order to show; numbers: rows of
    `number_cells`."""
    links, sections = [], []
    if numbers:
        links.append('<li><a href="#numbers">The numbers</a></li>')
        cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in numbers]
        sections.append(NUMBERS.substitute(headings="".join(f'<th scope="col">{name}</th>' for name in HEADINGS),
                                           rows="\n".join(f"<tr>{row}</tr>" for row in cells)))
    for part, group in itertools.groupby(figures, part_of):
        title = escape(part_title(part))
        cards = [CARD.substitute(
            anchor=escape(figure.path.stem), link=quote(figure.path.stem), title=escape(figure.title),
            caption=escape(figure.caption), command=escape(figure.command), seconds=show_seconds(figure.seconds),
            image=base64.b64encode(figure.data).decode("ascii")) for figure in group]
        links.append(f'<li><a href="#part-{part}">{title}</a></li>')
        sections.append(SECTION.substitute(part=part, title=title, cards="\n".join(cards)))
    empty = f"<p>No figures yet: <code>{RUN}</code> draws them.</p>"
    return PAGE.substitute(links="\n".join(links), sections="\n".join(sections) or empty)
