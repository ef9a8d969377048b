"""Results, margins and the text table, on tables made by hand."""

import math
import random
import statistics

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.evaluate.results import margins, results
from jobs.evaluate.summary import text_table
from jobs.evaluate.table import SCHEMA, TINY_SCHEMA, from_parquet, scoreboard, to_parquet
from meancache import Schedule

DECIBELS = st.floats(5, 60)


def row(method: str, pair: int = 0, **changes) -> dict:
    usual = {
        "method": method,
        "setting": None,
        "source": "a test",
        "prompt_id": f"p{pair}",
        "prompt": "a red circle",
        "schedule_id": None,
        "budget": None,
        "nfe": 10,
        "seed": pair,
        "share": 0.2,
        "psnr": 30.0,
        "ssim": 0.9,
        "lpips": None,
        "psnr_fine": None,
        "caption": None,
        "seconds": 1.0,
    }
    full = {"budget": 50, "nfe": 50, "share": 1.0, "psnr": None, "ssim": None, "seconds": 5.0}
    return {**usual, **(full if method == "full" else {}), **changes}


def result(rows: list[dict], method: str):
    (found,) = [one for one in results(scoreboard(rows, TINY_SCHEMA)) if one.method == method]
    return found


@given(st.randoms(use_true_random=False), st.lists(DECIBELS, min_size=1, max_size=6))
def test_the_order_in_which_rows_come_changes_nothing(shuffle: random.Random, scores):
    rows = [row("fitted", pair, budget=10, psnr=score) for pair, score in enumerate(scores)]
    rows += [row("full", pair) for pair in range(len(scores))]
    table = scoreboard(rows, TINY_SCHEMA)
    shuffle.shuffle(rows)
    assert scoreboard(rows, TINY_SCHEMA).equals(table)


@given(st.lists(DECIBELS, min_size=2, max_size=9))
def test_a_result_is_the_mean_its_standard_error_and_the_worst_of_its_pairs(scores):
    rows = [row("full"), *(row("euler", pair, psnr=score) for pair, score in enumerate(scores))]
    found = result(rows, "euler")
    assert found.pairs == len(scores)
    assert found.psnr.mean == pytest.approx(statistics.fmean(scores))
    assert found.psnr.worst == min(scores)
    error = statistics.stdev(scores) / math.sqrt(len(scores))
    assert found.psnr.standard_error == pytest.approx(error, abs=1e-9)


def test_seconds_are_medians_as_the_first_video_of_a_fresh_rank_is_slow():
    rows = [row("full", pair, seconds=seconds) for pair, seconds in enumerate((60.0, 5.0, 5.0))]
    rows += [row("euler", pair, seconds=seconds) for pair, seconds in enumerate((9.0, 1.0, 1.0))]
    assert result(rows, "euler").seconds == 1.0
    assert result(rows, "euler").speedup == 5.0
    assert result(rows, "full").speedup == 1.0


def test_compute_is_averaged_over_the_pairs_that_it_was_counted_on():
    shares = (0.3, 0.5, None, None)
    rows = [row("full"), *(row("teacache", pair, share=share) for pair, share in enumerate(shares))]
    assert result(rows, "teacache").share == pytest.approx(0.4)
    assert result([row("full"), row("teacache", share=None)], "teacache").share is None


def test_what_nobody_measured_has_no_summary_and_the_worst_lpips_is_the_highest():
    found = result([row("full"), row("euler")], "euler")
    assert found.lpips is None
    assert found.psnr_fine is None
    assert found.caption is None
    assert result([row("full")], "full").psnr is None
    rows = [row("full"), row("euler", lpips=0.1), row("euler", 1, lpips=0.4)]
    assert result(rows, "euler").lpips.worst == 0.4


def test_ours_come_first_then_the_papers_then_baselines_by_name_and_the_full_run_last():
    methods = ["full", "unipc", "paper", "secant", "euler", "fitted"]
    found = results(scoreboard([row(method) for method in methods]))
    assert [one.method for one in found] == [
        *("fitted", "secant", "paper"),
        *("euler", "unipc", "full"),
    ]


def test_the_settings_of_a_method_stand_by_compute():
    shares = {"skip 10": 0.1, "skip 2": 0.5, "skip 3": 0.3}
    rows = [row("full"), *(row("baseline", setting=name, share=shares[name]) for name in shares)]
    found = results(scoreboard(rows, TINY_SCHEMA))
    assert [one.setting for one in found] == ["skip 10", "skip 3", "skip 2", None]


def test_settings_and_budgets_make_methods_of_their_own():
    rows = [row("full"), row("paper", budget=8, setting="jump, gamma 3")]
    rows += [row("paper", budget=8, setting="jump, gamma 4"), row("paper", budget=10)]
    assert [one.name for one in results(scoreboard(rows, TINY_SCHEMA))] == [
        "paper, B=8 (jump, gamma 3)",
        "paper, B=8 (jump, gamma 4)",
        "paper, B=10",
        "full",
    ]


def test_without_the_full_run_there_is_nothing_to_stand_against():
    with pytest.raises(ValueError, match="no row of method 'full'"):
        results(scoreboard([row("euler")]))


@given(
    st.lists(st.tuples(st.floats(0.01, 1), DECIBELS), max_size=8),
    st.lists(st.tuples(st.floats(0.01, 1), DECIBELS), max_size=4),
    DECIBELS,
)
def test_the_other_is_the_best_among_those_at_equal_or_less_compute(baselines, variants, mine):
    rows = [row("full"), row("fitted", budget=10, share=0.2, psnr=mine)]
    rows += [
        row(method, setting=str(number), share=share, psnr=score)
        for method, entries in (("euler", baselines), ("paper", variants))
        for number, (share, score) in enumerate(entries)
    ]
    (margin,) = margins(results(scoreboard(rows, TINY_SCHEMA)))
    for other, entries in ((margin.baseline, baselines), (margin.paper, variants)):
        fair = [score for share, score in entries if share <= 0.2]
        if not fair:
            assert other is None
        else:
            assert margin.over(other) == pytest.approx(mine - max(fair))


def test_equal_compute_is_fair_whatever_the_last_digit_of_its_division():
    rows = [row("full"), row("fitted", share=0.1 + 0.2), row("euler", share=0.3)]
    assert margins(results(scoreboard(rows, TINY_SCHEMA)))[0].baseline.method == "euler"
    rows = [row("full"), row("fitted", share=0.3), row("euler", share=0.1 + 0.2)]
    assert margins(results(scoreboard(rows, TINY_SCHEMA)))[0].baseline.method == "euler"


def test_neither_secant_nor_the_full_run_is_a_baseline_and_the_uncounted_is_no_other():
    rows = [row("full", share=0.1), row("fitted"), row("secant"), row("teacache", share=None)]
    (margin,) = margins(results(scoreboard(rows, TINY_SCHEMA)))
    assert margin.baseline is margin.paper is None
    assert str(margin) == "fitted: nothing else was measured at equal or less compute"


def test_a_margin_says_whom_it_is_ahead_of_or_behind_and_by_how_much():
    rows = [row("full"), row("fitted", budget=10, psnr=38.0), row("euler", psnr=24.0)]
    rows.append(row("paper", budget=10, setting="jump, gamma 3", psnr=41.5))
    (margin,) = margins(results(scoreboard(rows, TINY_SCHEMA)))
    assert str(margin) == (
        "fitted, B=10: ahead of every independent baseline at equal or less compute by 14.0 dB "
        "(euler: 24.0 dB); behind the best paper's variant at equal or less compute by 3.5 dB "
        "(paper, B=10 (jump, gamma 3): 41.5 dB)"
    )


def test_what_gradients_made_of_a_fitted_schedule_is_named_apart_from_the_baselines():
    rows = [row("full"), row("fitted", psnr=38.0), row("euler", psnr=24.0)]
    (margin,) = margins(results(scoreboard([*rows, row("refined", psnr=39.0)])))
    assert (margin.baseline.method, margin.refined.method) == ("euler", "refined")
    assert "behind the best refinement of it by gradients" in str(margin)
    assert "by 1.0 dB (refined: 39.0 dB)" in str(margin)


def test_two_identical_videos_are_neither_ahead_nor_behind():
    rows = [row("full"), row("fitted", psnr=math.inf), row("euler", psnr=math.inf)]
    (margin,) = margins(results(scoreboard(rows, TINY_SCHEMA)))
    assert margin.over(margin.baseline) == 0.0


def test_the_text_table_is_aligned_and_leaves_out_what_nobody_measured():
    rows = [row("full"), row("first-block-cache", setting="threshold 0.1"), row("fitted")]
    lines = text_table(results(scoreboard(rows, TINY_SCHEMA)), []).splitlines()
    assert len(lines) == 1 + 3
    assert "LPIPS" not in lines[0]
    assert "predicted" not in lines[0]
    ends = [line.index(cell) + len(cell) for line, cell in zip(
        lines, ("speed-up", "5.0x", "5.0x", "1.0x"), strict=True)]  # fmt: skip
    assert len(set(ends)) == 1


@pytest.mark.parametrize(
    ("aim", "column"), [({}, "predicted"), ({"reference_steps": 40}, "predicted to fine")]
)
def test_what_calibration_promised_stands_beside_what_it_is_a_promise_of(aim, column):
    data = Schedule.from_edges([1.0, 0.5, 0.0], [{"start": 0, "stop": 2, "span": 1}]).to_json()
    calibration = {"psnr": 41.26, **aim}
    del data["id"]
    schedule = Schedule.from_json({**data, "calibration": calibration})
    rows = [row("full"), row("paper", schedule_id=schedule.id)]
    header, line, _ = text_table(results(scoreboard(rows, TINY_SCHEMA)), [schedule]).splitlines()
    end = header.index(column) + len(column)
    assert line[end - 4 : end] == "41.3"


def test_the_table_survives_its_file_and_keeps_its_schema():
    table = scoreboard([row("full"), row("fitted", psnr=math.inf)])
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert from_parquet(to_parquet(table)).equals(table, check_metadata=True)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"PAR1", "not a Parquet file"),
        (to_parquet(pa.table({"method": ["full"]})), "not those of an evaluation"),
    ],
)
def test_a_file_that_is_no_evaluation_is_refused(data, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_parquet(data)
