"""The rows of the table of every method, as Markdown."""

from meancache.tiny.training import method_tables

LITTLE = {"mean": 0.99, "standard_error": 0.0, "tail": 0.98, "worst": 0.9}


def row(method: str, mean: float, budget: int | None, share: float, **more: object) -> dict:
    psnr = {"mean": mean, "standard_error": 1.0, "tail": mean - 2, "worst": mean - 5}
    scores = {"psnr": psnr, "ssim": LITTLE, "flip": LITTLE}
    about = {"method": method, "budget": budget, "share": share, "setting": None, "seconds": 0.5}
    return {**about, **scores, **more}


def test_of_a_methods_settings_the_best_within_the_compute_counts():
    rows = [
        row("fitted", 50.0, 10, 0.2),
        row("fitted", 60.0, 15, 0.3),
        row("cache", 30.0, None, 0.20, setting="low"),
        row("cache", 40.0, None, 0.25, setting="high"),
        row("cache", 70.0, None, 0.30, setting="too high"),
        {"method": "slow", "budget": None, "share": 0.9, "setting": None},
    ]
    found = method_tables.best(rows, 10, 50)
    assert [(one["method"], one["psnr"]["mean"]) for one in found] == [
        ("fitted", 50.0),
        ("cache", 40.0),
    ]


def test_a_row_says_all_that_is_known_of_it():
    said = method_tables.line(row("fitted", 50.0, 10, 0.2, setting="ten", seconds=0.123))
    assert said == ("| `fitted` | ten | 20% | 50.0 ± 1.0 | 48.0 | 45.0 | 0.9900 | 0.9900 | 0.12 |")


def test_each_budget_has_a_table_of_its_own():
    rows = [row("fitted", 50.0, 10, 0.2), row("fitted", 60.0, 15, 0.3)]
    found = {"shift": 7.0, "steps": 50, "budgets": [10, 15], "rows": rows}
    said = method_tables.sections(found).splitlines()
    assert [line for line in said if line.startswith("#")] == [
        "## Shift 7, 50 steps, B = 10",
        "## Shift 7, 50 steps, B = 15",
    ]
    assert sum("`fitted`" in line for line in said) == 2
