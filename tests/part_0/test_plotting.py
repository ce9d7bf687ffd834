"""A figure file carries its title, caption and command, appears whole or not at all, and needs no display."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from part_0.plotting import COLORS, figure_path, heatmap, plt, save_figure

TEXTS = dict(title="Loss", caption="It falls. Read it from left to right.", command="python3 part_0/demo.py --steps 3")


def chunks(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return dict(image.text)


@pytest.mark.parametrize("texts", [
    TEXTS,
    dict(title="Attention, σ(QKᵀ)", caption='注意力 – Größe "x" → y\nsecond line, 100 %',
         command="python3 a.py --data 文.txt"),
    dict(title=r"The next byte after “$\no_math$”", caption="a", command="b")])
def test_the_file_gives_back_title_caption_and_command(tmp_path, texts):
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    path = save_figure(fig, tmp_path / "new" / "folder" / "figure.png", **texts)
    found = chunks(path)
    assert (found["Title"], found["Description"], found["Command"]) == tuple(texts.values())
    assert float(found["Seconds"]) >= 0


def test_the_size_is_the_readable_one(tmp_path):
    path = save_figure(plt.figure(), tmp_path / "a.png", **TEXTS)
    with Image.open(path) as image:
        assert image.size == (960, 540)  # 8 x 4.5 inches at 120 dots per inch
    assert plt.rcParams["font.size"] >= 12


def test_the_figure_is_closed_and_nothing_else_is_left(tmp_path):
    fig = plt.figure()
    save_figure(fig, tmp_path / "a.png", **TEXTS)
    assert not plt.fignum_exists(fig.number)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"the old figure")
    fig = plt.figure()

    def breaks_off(file, **_):
        Path(file).write_bytes(b"half a fig")
        raise OSError("no space left on device")

    monkeypatch.setattr(fig, "savefig", breaks_off)
    with pytest.raises(OSError, match="no space left"):
        save_figure(fig, path, **TEXTS)
    assert path.read_bytes() == b"the old figure"
    assert [found.name for found in tmp_path.iterdir()] == ["a.png"]
    assert not plt.fignum_exists(fig.number)


def test_quick_figures_have_a_folder_of_their_own(tmp_path):
    script = tmp_path / "part_3" / "demo.py"
    assert figure_path(script, "rope") == tmp_path / "part_3" / "out" / "rope.png"
    assert figure_path(script, "rope", quick=True) == tmp_path / "part_3" / "out" / "quick" / "rope.png"


@pytest.mark.parametrize("folder, said", [("quick", ["quick run"]), ("out", [])])
def test_a_quick_run_s_figure_says_across_its_face_what_it_is(tmp_path, folder, said):
    fig, _ = plt.subplots()
    save_figure(fig, tmp_path / folder / "a.png", **TEXTS)
    assert [text.get_text() for text in fig.texts if text.get_text() != "Loss"] == said


def test_numbers_stay_with_their_figure_and_are_not_made_up(tmp_path):
    with_numbers, without = (save_figure(plt.figure(), tmp_path / f"{i}.png", **TEXTS, numbers=numbers)
                             for i, numbers in enumerate([{"mfu": 0.58, "device": "cpu"}, None]))
    assert json.loads(chunks(with_numbers)["Numbers"]) == {"mfu": 0.58, "device": "cpu"}
    assert "Numbers" not in chunks(without)


def test_no_display_is_needed():
    assert matplotlib.get_backend().lower() == "agg"


def test_a_heatmap_writes_each_number_where_it_belongs_and_legibly():
    fig, ax = plt.subplots()
    heatmap(ax, np.array([[0.0, 0.5, 1.0], [1.0, 0.0, 0.25]]), xlabel="key", ylabel="query", xticks=["a", "b", "c"],
            yticks=["d", "e"], fmt="{:.2f}")
    written = {tuple(text.get_position()): (text.get_text(), text.get_color()) for text in ax.texts}
    # viridis runs from near-black violet to bright yellow: white on the lowest value, black on the highest
    assert written[0, 0] == ("0.00", "white") and written[2, 0] == ("1.00", "black") and written[2, 1][0] == "0.25"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b", "c"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["d", "e"]
    plt.close(fig)


def test_the_colors_differ_in_grey_too():
    greys = sorted(np.dot([0.299, 0.587, 0.114], matplotlib.colors.to_rgb(color)) for color in COLORS[:4])
    assert np.diff(greys).min() > 0.03
