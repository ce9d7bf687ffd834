"""The bands of the numbers: the rule by hand, and what the repository's own expected.json say."""

import json
import re

import pytest

from part_0.cli import InputError
from part_0.expected_numbers import load_bands, measured, widen
from part_0.gallery import show_number
from tests.repository import PARTS, ROOT, module_of

BANDS = load_bands(ROOT)


def test_a_band_reaches_as_far_beyond_the_seeds_as_they_lie_apart():
    assert widen((1.0, 1.2, 1.1)) == (pytest.approx(0.8), pytest.approx(1.4))


def test_a_band_is_never_narrower_than_a_fiftieth_of_the_mean_on_each_side():
    assert widen((5.0, 5.0, 5.0)) == (pytest.approx(4.9), pytest.approx(5.1))
    assert widen((-5.0, -5.0, -5.0)) == (pytest.approx(-5.1), pytest.approx(-4.9))


def test_a_band_ends_at_what_is_possible():
    assert widen((0.97, 0.99, 0.98), limits=(0, 1)) == (pytest.approx(0.95), 1)
    assert widen((0.01, 0.02, 0.03), limits=(0, 1)) == (0, pytest.approx(0.05))


def test_the_band_of_a_speed_is_half_to_twice():
    assert widen((50.0, 40.0, 45.0), "speed") == (20.0, 100.0)
    assert widen((0.5, 0.6), "speed", (0, 1)) == (0.25, 1)


def test_every_part_has_its_numbers_and_they_are_one_list_in_order():
    assert sorted({band.part for band in BANDS}) == [int(path.name[-1]) for path in PARTS]
    assert [band.part for band in BANDS] == sorted(band.part for band in BANDS)


@pytest.mark.parametrize("band", BANDS, ids=lambda band: f"part_{band.part} {band.metric}")
def test_a_band_follows_from_at_least_three_seeds_by_the_rule(band):
    assert len(band.seeds) >= 3
    low, high = widen(band.seeds, band.kind, band.limits)
    assert (band.low, band.high) == (pytest.approx(low, abs=6e-4), pytest.approx(high, abs=6e-4))
    assert band.place(band.seeds[0]) == "inside" and band.below and band.above


@pytest.mark.parametrize("band", BANDS, ids=lambda band: f"part_{band.part} {band.metric}")
def test_a_band_names_a_script_and_a_lesson_that_exist_and_its_page_tells_seeds_band_and_meaning(band):
    script = ROOT / band.command.split()[1]
    assert script.is_file() and script.parent.name == f"part_{band.part}"
    page = (ROOT / f"part_{band.part}" / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(band.lesson)} ", page, re.M)
    [row] = [line for line in page.splitlines() if line.startswith(f"| {band.label} ")]
    cells = [", ".join(map(show_number, band.seeds)), f"{show_number(band.low)} to {show_number(band.high)}", band.below,
             band.above]
    assert row.strip("| ").split(" | ")[1:] == cells
    if band.source.startswith("runs/"):
        assert module_of(script).Config().out == str(ROOT / f"part_{band.part}" / band.source)


def test_what_lies_where():
    band = BANDS[0]
    assert band.place(band.low) == band.place(band.high) == "inside" and band.meaning(band.low) == ""
    assert (band.place(band.low - 1e-9), band.meaning(band.low - 1e-9)) == ("below", band.below)
    assert (band.place(band.high + 1e-9), band.meaning(band.high + 1e-9)) == ("above", band.above)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"metric": "x"}]', "3"])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "part_1").mkdir()
    (tmp_path / "part_1" / "expected.json").write_text(text)
    with pytest.raises(InputError, match="part_1/expected.json is damaged"):
        load_bands(tmp_path)


@pytest.mark.parametrize("summary", [None, "{", "{}", '{"device": "cpu"}', '{"%s": null, "device": "cpu"}', "[]"])
def test_a_run_that_did_not_end_gives_no_number(tmp_path, summary):
    band = next(band for band in BANDS if band.source.startswith("runs/"))
    folder = tmp_path / f"part_{band.part}" / band.source
    folder.mkdir(parents=True)
    if summary is not None:
        (folder / "summary.json").write_text(summary.replace("%s", band.metric))
    assert measured(tmp_path, band) is None
    (folder / "summary.json").write_text(json.dumps({band.metric: 1.5, "device": "cuda"}))
    assert measured(tmp_path, band) == (1.5, "cuda")
