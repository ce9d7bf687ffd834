"""The gallery in a real browser: a headless Chromium opens the page, and a script inside reports what it became.

A phone is an iframe 390 CSS pixels wide, because Chromium's own window is never narrower than 500.
"""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

import generate_screenshots as collector
from part_0.plotting import plt, save_figure

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a headless browser: apt-get install chromium (Debian)")

NASTY = ('</figcaption><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> & "quotes" $links '
         + "x" * 300)
PHONE = 390
PROBE = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message || "a resource failed"), true);
addEventListener("load", () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const ground = (node) => {
    const color = getComputedStyle(node).backgroundColor;
    return color !== "rgba(0, 0, 0, 0)" || !node.parentElement ? color : ground(node.parentElement);
  };
  const dialog = document.querySelector("dialog");
  const opened = all("a.open").map((link) => {
    link.focus();
    const outline = getComputedStyle(link).outlineStyle;
    link.click();
    const image = dialog.querySelector("img");
    const seen = {outline, modal: dialog.matches(":modal"),
      natural: image.naturalWidth === image.getBoundingClientRect().width,
      focus: document.activeElement.textContent, inside: dialog.getBoundingClientRect().right <= innerWidth};
    dialog.querySelector("button").click();
    return {...seen, closed: !dialog.open, back: document.activeElement === link};
  });
  const report = {
    errors, opened, hacked: window.hacked === 1, width: innerWidth, scroll: document.documentElement.scrollWidth,
    images: all("article img").map((image) => ({loaded: image.complete && image.naturalWidth, shown: image.width,
      card: image.closest("article").clientWidth, ground: ground(image)})),
    captions: all("figcaption").map((caption) => caption.textContent),
    columns: new Set(all("article").map((card) => card.getBoundingClientRect().left)).size,
    stops: all("a, button, [tabindex]").filter((node) => node.tabIndex >= 0 && !dialog.contains(node))
      .map((node) => [node.tabIndex, node.getAttribute("href")]),
    cells: all("td").map((cell) => cell.textContent),
    texts: all("body > header p, h1, h2, h3, nav a, th, td, figcaption, pre code, .soft, footer a").map((node) =>
      [getComputedStyle(node).color, ground(node)]),
  };
  parent.postMessage(JSON.stringify(report), "*");
});
</script>"""
FRAME = """<!DOCTYPE html><html style="color-scheme: light dark"><body style="margin: 0"><script>
addEventListener("message", (event) => {{
  const out = document.createElement("pre");
  out.id = "report";
  out.textContent = event.data;
  document.body.append(out);
}});
</script><iframe src="probed.html" style="width: {width}px; height: 800px; border: 0"></iframe></body></html>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """screenshots/ as the collector writes it for three figures and a number, with a copy of the page that reports on
    itself."""
    root = tmp_path_factory.mktemp("repository")
    run = root / "part_2" / "runs" / "train"
    run.mkdir(parents=True)
    (run / "summary.json").write_text('{"val_loss": 1.3, "device": "cpu"}')
    (root / "part_2" / "expected.json").write_text(json.dumps([dict(
        metric="val_loss", label="validation loss, nats per byte, and " + "a long name " * 9, source="runs/train", low=1.2,
        high=1.4, command="python3 part_2/train.py", device="cpu", seeds=[1.3] * 3, lesson="2.4", below="b", above="a")]))
    for part, name, caption in [(1, "heads", NASTY), (1, "masks", "Plain."), (2, "loss", "Falls.")]:
        fig, ax = plt.subplots()
        ax.plot([1, 2, 3])
        save_figure(fig, root / f"part_{part}" / "out" / f"{name}.png", title=f"Figure {name}", caption=caption,
                    command=f"python3 part_{part}/demo_{name}.py --prompt {'y' * 200}")
    assert collector.main([], root) == 0
    page = (root / "screenshots" / "index.html").read_text(encoding="utf-8")
    (root / "screenshots" / "probed.html").write_text(page.replace("<title>", PROBE + "<title>", 1), encoding="utf-8")
    return root / "screenshots"


def browse(folder, name, *flags):
    """Open folder/name; returns (the DOM after its scripts have run, what the browser logged)."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
         "--disable-component-update", "--no-first-run", f"--user-data-dir={folder.parent / 'profile'}",
         "--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000", *flags, "--dump-dom",
         (folder / name).as_uri()],
        capture_output=True, timeout=120, check=True)
    return done.stdout.decode("utf-8"), done.stderr.decode("utf-8", "replace")


@pytest.fixture(scope="module", params=[(PHONE, "light"), (PHONE, "dark"), (1280, "light"), (1280, "dark")],
                ids=lambda param: f"{param[0]}-{param[1]}")
def view(request, folder):
    """(the page's report on itself, what the browser logged, colour scheme) at one width and scheme."""
    width, scheme = request.param
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    dom, log = browse(folder, "frame.html", "--window-size=1400,900",
                      f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}")
    report = re.search(r'<pre id="report">(.*?)</pre>', dom, re.DOTALL)
    assert report, f"the page sent no report; the browser logged:\n{log}"
    report = json.loads(unescape(report[1]))
    assert report["width"] == width
    return report, log, scheme


def luminance(color):
    """Relative luminance of "rgb(r, g, b)" (WCAG 2.1)."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_figure_loads_inside_its_card(view):
    images = view[0]["images"]
    assert [image["loaded"] for image in images] == [960, 960, 960]
    assert all(0 < image["shown"] <= image["card"] for image in images)


def test_nothing_logs_an_error(view):
    report, log, _ = view
    assert report["errors"] == [] and "CONSOLE" not in log


def test_a_caption_with_markup_is_shown_and_not_obeyed(view):
    report = view[0]
    assert report["captions"] == [NASTY, "Plain.", "Falls."]
    assert not report["hacked"]


def test_the_page_never_scrolls_sideways(view):
    assert view[0]["scroll"] <= view[0]["width"]


def test_a_phone_gets_one_column_and_a_desk_more(view):
    assert view[0]["columns"] == (1 if view[0]["width"] == PHONE else 2)


def test_every_link_is_a_tab_stop_in_reading_order(view):
    assert view[0]["stops"] == [[0, link] for link in (
        "#figures", "#numbers", "#part-1", "#part-2", None, "#part_1_heads", "#part_1_masks", "#part_2_loss", "#top")]


def test_the_numbers_stand_in_a_table(view):
    assert view[0]["cells"][::2] == ["2.4", "1.300", "inside"] and view[0]["cells"][3] == "1.200 to 1.400"


def test_a_figure_opens_at_full_size_and_closing_leads_back_to_it(view):
    expected = {"modal": True, "natural": True, "focus": "Close", "inside": True, "closed": True, "back": True}
    for figure in view[0]["opened"]:
        assert {name: figure[name] for name in expected} == expected
        assert figure["outline"] == "solid"
    assert len(view[0]["opened"]) == 3


def test_text_is_readable_and_figures_stay_on_white(view):
    report, _, scheme = view
    for color, ground in report["texts"]:
        assert contrast(color, ground) >= 4.5, (color, ground)  # WCAG 2.1, 1.4.3
        assert (luminance(ground) < 0.2) == (scheme == "dark")
    assert {image["ground"] for image in report["images"]} == {"rgb(255, 255, 255)"}
