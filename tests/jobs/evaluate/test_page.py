"""The evaluation's page, on a made-up but plausible evaluation, read as a person reads it."""

import itertools
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs._shared.pages import number, plus_minus
from jobs.evaluate import figures
from jobs.evaluate.figures.fidelity import Point, front, spread, ticks
from jobs.evaluate.figures.velocity import relative_change
from jobs.evaluate.page import evaluation_page
from jobs.evaluate.results import results
from jobs.evaluate.table import TINY_SCHEMA, scoreboard
from meancache import Schedule
from meancache.calibration import Calibration
from meancache.grid import Grid
from meancache.quality import Summary
from meancache.statistics import trajectory_statistics
from tests.support.browser import needs_browser, views

EVIL = "<script>document.title = 'owned'</script> a red circle & a $x^{ \"square\""
STEPS = 50
BUDGETS = (5, 6, 8, 10, 12, 15)
# Method -> PSNR in dB at 10% of the compute, and what doubling the compute adds.
CURVES = {
    "fitted": (26.0, 14.0),
    "secant": (15.0, 14.5),
    "euler": (18.8, 6.5),
    "unipc": (19.2, 6.2),
    "dpm-solver++": (19.0, 6.9),
    "first-block-cache": (14.0, 10.0),
    "taylorseer": (16.5, 10.5),
    "magcache": (17.0, 9.0),
    "pyramid-attention-broadcast": (9.0, 9.5),
    "dbcache": (15.0, 9.8),
    "dbcache-taylorseer": (15.5, 11.4),
    "teacache": (13.0, 9.2),
    "optimal-stepsize": (20.5, 7.5),
    "refined": (26.5, 14.2),
}
CACHES = dict.fromkeys(
    ["first-block-cache", "taylorseer", "magcache", "dbcache", "dbcache-taylorseer", "teacache"],
    "threshold",
)


def grid() -> Grid:
    """50 steps shifted by 7, as HunyuanVideo's."""
    even = np.linspace(1, 0, STEPS + 1)
    return Grid.from_sigmas((7 * even / (1 + 6 * even)).tolist())


def schedule(method: str, budget: int, rule: str | None = None) -> Schedule:
    """One that computes about evenly spread steps; a fitted one foresees its fidelity."""
    starts = sorted({round(STEPS * (k / budget) ** 1.2) for k in range(budget)})
    edges = [
        {"start": a, "stop": b, **({"span": 1} if rule else {"weights": {a: 1.0}})}
        for a, b in itertools.pairwise([*starts, STEPS])
    ]
    made = Schedule.from_edges(grid().sigmas, [dict(edge) for edge in edges], rule)
    foreseen = {"psnr": mean_psnr("fitted", budget / STEPS) + 1.0} if method == "fitted" else {}
    return replace(made, method=method, budget=budget, gamma=3.0, calibration=foreseen)


def mean_psnr(method: str, share: float) -> float:
    at_a_tenth, doubling = CURVES[method]
    return at_a_tenth + doubling * math.log2(share / 0.1)


def evaluation(pairs: int = 24, prompt: str = "a red circle moving left on a dark background"):
    """A table of all methods, and the schedules that competed in it."""
    noise = np.random.default_rng(0)
    luck = noise.gumbel(0.0, 2.0, pairs)  # a few pairs are unlucky under every method
    schedules = [schedule(method, budget) for method in ("fitted", "secant") for budget in BUDGETS]
    methods = [("full", None, "diffusers", STEPS, 1.0, math.inf, None)]
    for one in schedules:
        share = one.nfe / STEPS
        source = "this project"
        decibels = mean_psnr(one.method, share)
        methods.append((one.method, None, source, one.budget, share, decibels, one.id))
    for budget, gamma in itertools.product(BUDGETS, range(1, 6)):
        decibels = 15.0 + 11 * math.log2(budget / 5) - (gamma - 3) ** 2 / 2
        for rule, gain in (("jump", 0.0), ("fine-step", 1.5)):
            if rule == "jump" or gamma in (3, 4):
                one = replace(schedule("paper", budget, rule), gamma=float(gamma))
                schedules.append(one)
                name, source = f"{rule}, gamma {gamma}", "arXiv:2601.19961"
                of = ("paper", name, source, budget, budget / STEPS, decibels + gain, one.id)
                methods.append(of)
    for method in list(CURVES)[2:]:
        for place, share in enumerate((0.1, 0.16, 0.2, 0.24, 0.34, 0.5)):
            knob = f"{CACHES[method]} {0.05 * (6 - place):.2f}" if method in CACHES else None
            budget = None if method in CACHES else round(share * STEPS)
            knob = knob or (f"range {6 - place}" if method.startswith("pyramid") else None)
            source = "written from its paper" if method == "teacache" else "diffusers 0.42.1"
            of = (method, knob, source, budget, share, mean_psnr(method, share))
            methods.append((*of, None))
    rows = []
    for method, setting, source, budget, share, decibels, schedule_id in methods:
        for pair in range(pairs):
            full = method == "full"
            psnr = None if full else float(decibels - luck[pair] + noise.normal(0, 0.6))
            seen = 33.0 if psnr is None else -10 * math.log10(10 ** (-psnr / 10) + 10**-3.4)
            rows.append(
                {
                    "method": method,
                    "setting": setting,
                    "source": source,
                    "prompt_id": f"p{pair:02d}",
                    "prompt": f"{prompt}, take {pair}",
                    "schedule_id": schedule_id,
                    "budget": budget,
                    "nfe": round(share * STEPS),
                    "seed": pair,
                    "share": share,
                    "psnr": psnr,
                    "ssim": None if psnr is None else 1 - 10 ** (-psnr / 20),
                    "lpips": None,
                    "psnr_fine": seen + float(noise.normal(0, 0.2)),
                    "caption": float(noise.choice([0.75, 1.0], p=[0.1, 0.9])),
                    "seconds": 0.05 + 0.95 * share + float(abs(noise.normal(0, 0.01))),
                }
            )
    return scoreboard(rows, TINY_SCHEMA), schedules


def calibrated() -> Calibration:
    """A graph of two trajectories whose velocity drifts slowly and trembles.

    With levels below the last step, as `jobs.calibrate` records them.
    """
    last = grid().sigmas[-2]
    below = (last / 2, last / 4)
    trajectories = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        sigmas = torch.tensor([*grid().sigmas[:-1], *below], dtype=torch.float32)[:, None]
        drift = sigmas * torch.randn(1, 256, generator=generator)
        tremble = 0.03 * torch.randn(len(sigmas), 256, generator=generator)
        velocities = torch.randn(1, 256, generator=generator) + drift + tremble
        trajectories.append(trajectory_statistics(velocities, grid(), "p", seed, below=len(below)))
    return Calibration(grid(), below=below).add(trajectories)


UNUSABLE = [
    ("fastercache", "raises on this transformer: it has no <unconditional> branch"),
    ("seacache", "fails open: the pipeline passes no step index, so nothing is ever skipped"),
]


@pytest.fixture(scope="module")
def page() -> str:
    """The page of a whole evaluation with an evil prompt."""
    table, schedules = evaluation(prompt=EVIL)
    return evaluation_page(table, schedules, calibrated(), UNUSABLE)


def parsed(drawing: str) -> ET.Element:
    """The drawing as XML; in HTML `xlink:` needs no declaration."""
    return ET.fromstring(drawing.replace("xlink:href", "href"))


def charts(page: str) -> list[str]:
    """The drawings' titles."""
    return re.findall(r"<figure><h3>(.*?)</h3>", page)


def test_the_page_holds_every_figure_and_table(page):
    assert charts(page) == [
        "Fidelity against time",
        "Fidelity against compute",
        "Every pair, not only the mean",
        "Predicted against measured",
        "Instantaneous against average velocity",
        "Which steps compute",
        "Closeness to the exact flow",
    ]
    for heading in ("At equal compute", "The paper's gamma", "Every method", "could not run"):
        assert heading in page
    for method in CURVES:
        assert f"<b>{method}</b>" in page
    assert len(page.encode()) < 1_000_000


def test_what_was_not_measured_is_left_out():
    table, _ = evaluation(pairs=2)
    rows = [
        {**row, "psnr_fine": None, "caption": None}
        for row in table.to_pylist()
        if row["method"] in ("full", "euler")
    ]
    page = evaluation_page(scoreboard(rows, TINY_SCHEMA), [], None, [])
    assert charts(page) == ["Fidelity against time", "Fidelity against compute"]
    assert "could not run" not in page
    assert "caption, %" not in page
    assert "No fitted schedule is among them" in page


def test_an_evaluation_of_the_full_run_alone_is_still_a_page():
    table, _ = evaluation(pairs=1)
    rows = [row for row in table.to_pylist() if row["method"] == "full"]
    assert charts(evaluation_page(scoreboard(rows, TINY_SCHEMA), [], None, [])) == []


def test_a_video_equal_to_the_full_run_does_not_break_the_page():
    table, schedules = evaluation(pairs=3)
    rows = [
        {**row, "psnr": math.inf} if row["method"] in ("fitted", "dbcache") else row
        for row in table.to_pylist()
    ]
    page = evaluation_page(scoreboard(rows, TINY_SCHEMA), schedules, calibrated(), [])
    assert "∞" in page
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.S)


def test_a_other_that_wins_at_no_more_compute_is_marked(page):
    # Of the made-up curves only `refined` lies above `fitted`.
    winners = {
        group.split("</b>")[0].rsplit("<b>")[-1]
        for group in re.findall(r"<tbody.*?</tbody>", page, flags=re.S)
        if re.search(r"bad\">B = [\d, ]+</td></tr>", group)
    }
    assert winners == {"refined"}
    assert page.count("starts from the fitted schedule") == 1
    table, schedules = evaluation()
    without = scoreboard(row for row in table.to_pylist() if row["method"] != "refined")
    honest = evaluation_page(without, schedules, None, [])
    assert not re.search(r"bad\">B = ", honest)
    assert "ahead of the best independent baseline" in honest


def test_the_lead_is_paired_so_luck_that_both_share_does_not_blur_it():
    table, schedules = evaluation()
    page = evaluation_page(table, schedules, None, [])
    lead = re.search(
        r"<b>\+[\d.]+ <small>± ([\d.]+) dB</small></b><span>\s*ahead of the paper", page
    )
    mean = re.search(r"<b>[\d.]+ <small>± ([\d.]+) dB</small></b><span>PSNR", page)
    assert lead is not None
    assert mean is not None
    assert float(lead[1]) < float(mean[1])


def test_of_a_method_s_schedules_the_best_of_each_budget_is_drawn(page):
    told = re.search(r'aria-label="(Computed steps\. .*?)"', page)
    assert told is not None
    budgets = [int(budget) for budget in re.findall(r"paper, budget (\d+):", told[1])]
    assert budgets == list(BUDGETS)


def test_a_promise_is_held_against_the_reference_that_it_was_made_for():
    table, schedules = evaluation(pairs=4)
    first = schedules[0]
    aim = {"psnr": 31.0, "reference_steps": 300}
    fine = replace(first, calibration=aim)
    rows = [
        {**row, "schedule_id": fine.id, "psnr_fine": 32.0}
        for row in table.to_pylist()
        if row["schedule_id"] == first.id
    ]
    full = [row for row in table.to_pylist() if row["method"] == "full"]
    page = evaluation_page(scoreboard([*rows, *full]), [fine], None, [])
    assert "B = 5, to fine: 31.0 dB predicted, 32.0 measured." in page


def test_only_a_lead_beyond_its_error_is_closer_to_the_exact_flow_than_the_full_run():
    table, _ = evaluation(pairs=8)
    for offsets, closer in (([0.5, -0.4], False), ([0.5, 0.4], True)):
        rows = [
            {**row, "psnr_fine": 30.0 + row["seed"] + offsets[row["seed"] % 2] * (row["nfe"] == 12)}
            for row in table.to_pylist()
            if row["method"] in ("fitted", "full")
        ]
        page = evaluation_page(scoreboard(rows, TINY_SCHEMA), [], None, [])
        assert bool(re.search(r"<b>B = 12</b><span>is the least", page)) is closer


def test_the_same_evaluation_gives_the_same_page(page):
    table, schedules = evaluation(prompt=EVIL)
    assert evaluation_page(table, schedules, calibrated(), UNUSABLE) == page


def test_every_drawing_is_well_formed_and_tells_its_numbers_in_words(page):
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert len(drawings) == 7
    ids = [re.findall(r'\bid="([^"]+)"', drawing) for drawing in drawings]
    assert sum(map(len, ids)) == len(set().union(*ids))
    for drawing in drawings:
        root = parsed(drawing)
        assert root.get("role") == "img"
        assert re.search(r"\d", root.get("aria-label", ""))
        assert not re.search(r"#[0-9a-f]{6}\b", drawing)  # every colour is the page's


def test_markup_in_a_method_s_name_stays_text():
    evil = '</svg><script>x</script> $x^{ style="font: 1px'
    table, _ = evaluation(pairs=2)
    rows = [
        {**row, "method": evil} if row["method"] == "euler" else row for row in table.to_pylist()
    ]
    steps = figures.computed_steps([replace(schedule("fitted", 5), method=evil)])
    curves = figures.fidelity(results(scoreboard(rows, TINY_SCHEMA)), "share")
    for drawing, shown in ((steps, evil), (curves, evil[:20])):  # a long label is cut
        assert drawing is not None
        assert "<script" not in drawing
        assert shown in "".join(parsed(drawing).itertext())


costs = st.lists(st.tuples(st.floats(0.01, 1), st.floats(5, 60)), max_size=20)


@given(costs)
def test_the_front_is_what_no_cheaper_point_beats(pairs):
    points = [Point(cost, Summary(decibels, 0.0, decibels)) for cost, decibels in pairs]
    kept = front(points)
    for point in points:
        matched = [one for one in kept if one.cost <= point.cost]
        assert max(one.fidelity.mean for one in matched) >= point.fidelity.mean
    for one, after in itertools.pairwise(kept):
        assert one.cost < after.cost
        assert one.fidelity.mean < after.fidelity.mean


@given(st.lists(st.floats(0, 100), max_size=10).map(sorted))
def test_labels_keep_their_order_their_distance_and_the_frame(wanted):
    heights = spread(wanted, 10.0, 0.0, 100.0)
    assert len(heights) == len(wanted)
    assert all(b - a >= 10.0 - 1e-9 for a, b in itertools.pairwise(heights))
    assert all(-1e-9 <= height <= 100.0 + 1e-9 for height in heights)


def test_a_constant_velocity_does_not_change_and_a_reversed_one_changes_twofold():
    same = np.ones((3, 3))
    assert relative_change(np.eye(3), same) == pytest.approx([0, 0])
    sign = np.array([1.0, -1.0, 1.0])
    assert relative_change(np.eye(3), np.outer(sign, sign)) == pytest.approx([2, 2])


def test_numbers_are_written_for_people():
    assert number(-3.25) == "−3.2"
    assert number(-0.01) == "0.0"
    assert number(None) == number(math.nan) == "–"
    assert number(math.inf) == "∞"
    assert plus_minus(Summary(38.66, 0.61, 30.0)) == "38.7 ± 0.6"
    assert plus_minus(Summary(38.66, math.nan, 38.66)) == "38.7"


@needs_browser
def test_a_real_browser_shows_it_whole_on_phone_and_desktop_in_light_and_dark(page, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page)
    for view in views(file.as_uri()):
        assert view.title() == "MeanCache: the evaluation"
        assert view.locator("td", has_text="<script>document.title").count() > 0
        drawings = view.locator("figure svg")
        assert drawings.count() == 7
        for drawing in drawings.all():
            box = drawing.bounding_box()
            assert box is not None
            assert box["width"] > 250
            assert box["height"] > 100
        # Ink on paper: text in a drawing stands out from the page in either scheme.
        ink, paper = view.evaluate(
            "[getComputedStyle(document.querySelector('figure svg text')).fill,"
            " getComputedStyle(document.body).backgroundColor]"
        )
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
        assert abs(brightness[0] - brightness[1]) > 200


@given(st.floats(1e-3, 1e4), st.floats(1.05, 1e4))
def test_an_axis_has_several_numbers_that_do_not_overlap(low, ratio):
    found = ticks(low, low * ratio)
    assert 2 <= len(found) <= 8
    assert all(low <= one <= low * ratio for one in found)
    assert all(after / before >= ratio ** (1 / 7) for before, after in itertools.pairwise(found))


def test_a_median_of_few_runs_is_marked():
    for pairs, marked in ((2, True), (6, False)):
        table, schedules = evaluation(pairs=pairs)
        page = evaluation_page(table, schedules, None, [])
        assert ("of only 2 pairs" in " ".join(page.split())) == marked
