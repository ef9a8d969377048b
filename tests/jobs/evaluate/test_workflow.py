"""The evaluation on a real Ray cluster: every method's row of every pair, each once."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.fleet.gang import MAX_ATTEMPTS, Gang, TryAgainError
from cluster.ranks import rank_builder
from cluster.results.attempts import Attempts
from cluster.store import open_store
from cluster.work.plan import WorkItem, plan_items
from cluster.work.prompts import Prompt
from jobs._shared import cli as _cli
from jobs.evaluate import __main__ as evaluate
from jobs.evaluate.methods import Method, from_baselines, from_graph, from_schedules
from jobs.evaluate.pairs import ATTEMPTS, PAIRS, Evaluation, pair_key
from jobs.evaluate.results import results
from jobs.evaluate.table import TINY_SCHEMA, from_parquet
from meancache import Schedule, baselines
from meancache.baselines import Baseline
from meancache.calibration import Calibration
from tests.jobs.conftest import PROMPTS
from tests.support.calibrations import recorded

SHIPPED = Path(__file__).parents[3] / "schedules" / "tiny"
FORWARDS = 50 + 8 + 15  # of the full run and the two schedules that compete
HELD_OUT = PROMPTS[:2]
STEPS = 8

pytestmark = pytest.mark.usefixtures("shared_cluster")


def command(root: Path, schedules: Path | None = None, *more: str) -> list[str]:
    if schedules is None:
        schedules = root.parent / "shipped"
        schedules.mkdir(exist_ok=True)
        for name in ("paper-b8.json", "paper-b15.json"):
            shutil.copy(SHIPPED / name, schedules)
    prompts = root.parent / "held-out.txt"
    prompts.write_text("\n".join(HELD_OUT))
    asked = ["--model", "tiny", "--prompts", str(prompts), "--schedules", str(schedules)]
    return [*asked, "--gangs", "1", "--output", str(root), *more]


def table(root: Path) -> pa.Table:
    return pq.read_table(root / "evaluation.parquet")


def without_seconds(rows: pa.Table) -> pa.Table:
    return rows.drop_columns(["seconds"])


def uniform(model, computed: tuple[int, ...], steps: int = STEPS) -> Schedule:
    """A schedule of the given steps that holds each velocity."""
    stops = (*computed[1:], steps)
    edges = [
        {"start": start, "stop": stop, "weights": {start: 1.0}}
        for start, stop in zip(computed, stops, strict=True)
    ]
    return Schedule.from_edges(model.grid(steps).sigmas, edges)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """The root of a finished evaluation of the shipped schedules, on two pairs."""
    root = tmp_path_factory.mktemp("evaluated") / "out"
    assert evaluate.main(command(root, None, "--reference-steps", "100")) == 0
    return root


def test_there_is_a_row_for_every_method_and_pair_in_the_written_schema(evaluated):
    rows = table(evaluated)
    assert rows.schema.equals(TINY_SCHEMA, check_metadata=True)
    shipped = {Schedule.load(SHIPPED / f"paper-b{budget}.json").id for budget in (8, 15)}
    pairs = [(row["schedule_id"], row["prompt"]) for row in rows.to_pylist()]
    assert len(pairs) == len(set(pairs)) == (len(shipped) + 1) * len(HELD_OUT)
    assert {schedule_id for schedule_id, _ in pairs} == {None, *shipped}
    assert {prompt for _, prompt in pairs} == set(HELD_OUT)
    for row in rows.to_pylist():
        assert row["nfe"] == row["budget"]
        assert row["share"] == row["nfe"] / 50
        assert 0 < row["seconds"] < 60
        assert 0 <= row["caption"] <= 1
        assert row["psnr_fine"] > 10


def test_the_full_run_is_a_row_that_is_not_compared_with_itself(evaluated):
    rows = [row for row in table(evaluated).to_pylist() if row["method"] == "full"]
    assert [(row["budget"], row["nfe"], row["psnr"], row["ssim"]) for row in rows] == [
        (50, 50, None, None)
    ] * len(HELD_OUT)


def test_more_forwards_come_closer_to_the_full_run(evaluated):
    found = [one for one in results(table(evaluated)) if one.method == "paper"]
    assert [one.budget for one in found] == [8, 15]
    assert found[0].psnr.mean + 3 < found[-1].psnr.mean < 80


@pytest.mark.slow
def test_another_run_of_the_same_request_gives_the_same_table_but_for_seconds(
    evaluated, tmp_path, capsys
):
    root = tmp_path / "out"
    assert evaluate.main(command(root, None, "--reference-steps", "100")) == 0
    assert without_seconds(table(root)).equals(without_seconds(table(evaluated)))
    said = capsys.readouterr().out
    assert "2 pairs to do, 0 already done; 2 methods and the full run" in said
    assert f"run, {2 * (FORWARDS + 100)} forwards" in said
    assert "PSNR to fine" in said
    assert said.rstrip().endswith("report.html")


def test_a_stopped_evaluation_renders_the_pairs_that_are_missing(evaluated, tmp_path, capsys):
    root = Path(shutil.copytree(evaluated, tmp_path / "out"))
    pairs = sorted((root / "evaluation" / "pairs").iterdir())
    pairs[0].unlink()
    (root / "evaluation.parquet").unlink()
    kept = pairs[1].read_bytes()
    assert evaluate.main(command(root, None, "--reference-steps", "100")) == 0
    assert "1 pair to do, 1 already done" in capsys.readouterr().out
    assert pairs[1].read_bytes() == kept
    assert without_seconds(table(root)).equals(without_seconds(table(evaluated)))
    kept_rows = {tuple(row.values()) for row in from_parquet(kept).to_pylist()}
    assert kept_rows < {tuple(row.values()) for row in table(root).to_pylist()}


def test_the_same_command_again_renders_nothing(evaluated, tmp_path, capsys, monkeypatch):
    root = Path(shutil.copytree(evaluated, tmp_path / "out"))
    monkeypatch.setattr(
        "cluster.fleet.connection.connect", lambda *_: pytest.fail("a rank was asked for")
    )
    assert evaluate.main(command(root, None, "--reference-steps", "100")) == 0
    assert "0 pairs to do, 2 already done" in capsys.readouterr().out
    assert table(root).equals(table(evaluated))
    assert "<html" in (root / "report.html").read_text()


def test_a_damaged_pair_is_named_with_what_to_do(evaluated, tmp_path, capsys):
    root = Path(shutil.copytree(evaluated, tmp_path / "out"))
    pair = next((root / "evaluation" / "pairs").iterdir())
    pair.write_bytes(b"PAR1")
    assert evaluate.main(command(root, None, "--reference-steps", "100")) == _cli.EXIT_ERROR
    assert f"{pair.name}: not a Parquet file" in capsys.readouterr().err.replace("\n", " ")


# --- baselines ---


@pytest.fixture(scope="module")
def small_graph(model) -> Calibration:
    """A graph of a real trajectory of STEPS steps."""
    return recorded(model, STEPS, PROMPTS[2:])


@pytest.fixture
def small_folders(tmp_path, model, small_graph) -> tuple[Path, Path]:
    """Folders of a schedule and of a graph, both of STEPS steps."""
    schedules, graph = tmp_path / "schedules", tmp_path / "graph"
    schedules.mkdir()
    graph.mkdir()
    uniform(model, (0, 2, 5)).save(schedules / "fitted-b3.json")
    (graph / "statistics.parquet").write_bytes(small_graph.statistics_parquet())
    return schedules, graph


@pytest.mark.slow
def test_baselines_and_what_the_graph_solves_are_compared_too(
    tmp_path, small_folders, monkeypatch, capsys
):
    (schedules, graph), root = small_folders, tmp_path / "out"
    euler = [one for one in baselines.sweep() if one.method == "euler"][:2]
    monkeypatch.setattr(baselines, "sweep", lambda: euler)  # the others are tested where they live
    more = ["--steps", str(STEPS), "--graph", str(graph), "--baselines"]
    assert evaluate.main(command(root, schedules, *more)) == 0
    found = results(table(root))
    assert {one.method for one in found} >= {
        *("fitted", "secant", "paper", "euler", "magcache", "optimal-stepsize", "refined", "full")
    }
    assert {one.setting for one in found if one.method == "paper"} == {
        *(f"jump, gamma {gamma}" for gamma in range(1, 6)),
        *(f"fine-step, gamma {gamma}" for gamma in (3, 4)),
    }
    assert all(one.pairs == len(HELD_OUT) for one in found)
    assert "fitted, B=3: " in capsys.readouterr().out
    # A second look needs no rank: the calibrated schedules were committed.
    monkeypatch.setattr(
        "cluster.fleet.connection.connect", lambda *_: pytest.fail("a rank was asked for")
    )
    assert evaluate.main(command(root, schedules, *more)) == 0


@contextmanager
def _broken(pipeline: Any) -> Iterator[dict[str, Any]]:
    raise RuntimeError("this baseline is broken")
    yield {}


@pytest.fixture(scope="module")
def gang(model) -> Iterator[Gang]:
    with Gang(rank_builder(model), 1) as started:
        yield started


@pytest.fixture
def items(model) -> list[WorkItem]:
    arguments = {**model.defaults, "num_inference_steps": STEPS}
    prompts = [Prompt(line, f"caption {line}", f"p{line}", line) for line in range(4)]
    return plan_items(prompts, model, arguments)


@pytest.fixture
def attempts(tmp_path) -> Attempts:
    """Where failed attempts at pairs are counted."""
    return Attempts(open_store(str(tmp_path)), ATTEMPTS)


def rows_of(root: Path, item: WorkItem) -> dict[str, dict[str, Any]]:
    data = open_store(str(root)).get(pair_key(item))
    return {row["method"]: row for row in from_parquet(data).to_pylist()}


def test_a_baselines_compute_is_counted_on_the_first_pairs_and_its_steps_are_its_budget(
    tmp_path, gang, items, attempts
):
    (baseline,) = [
        one for one in baselines.sweep() if one.method == "euler" and one.setting.startswith("6")
    ]
    work = Evaluation(attempts, from_baselines([baseline]), None)
    assert work(gang, items[0]) == work(gang, items[3]) == ""
    first, later = rows_of(tmp_path, items[0]), rows_of(tmp_path, items[3])
    assert first["euler"]["budget"] == later["euler"]["budget"] == first["euler"]["nfe"] == 6
    assert first["euler"]["share"] == pytest.approx(6 / STEPS)
    assert later["euler"]["share"] is None
    assert later["full"]["share"] == 1.0
    assert later["euler"]["psnr"] < 60


def test_a_prompt_that_is_no_caption_has_no_caption_score(tmp_path, gang, items, attempts):
    work = Evaluation(attempts, [], None, captioned=True)
    assert work(gang, items[0]) == ""
    assert rows_of(tmp_path, items[0])["full"]["caption"] is None


def test_other_models_have_no_captions(tmp_path, gang, items, attempts):
    assert Evaluation(attempts, [], None)(gang, items[0]) == ""
    assert "caption" not in rows_of(tmp_path, items[0])["full"]


def test_a_method_that_fails_for_good_is_named_and_its_pair_stays_open(gang, items, attempts):
    broken = from_baselines([Baseline("magic", "on", "a test", _broken)])
    work = Evaluation(attempts, broken, None)
    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(TryAgainError, match="RuntimeError"):
            work(gang, items[0])
    problem = work(gang, items[0])
    assert problem.startswith("p0, seed 0: magic (on): rank 0 failed: RuntimeError")
    assert not list(attempts.store.list(PAIRS))


def test_a_schedule_that_computes_every_step_is_the_full_run(
    tmp_path, model, gang, items, attempts
):
    every = from_schedules({"all": uniform(model, tuple(range(STEPS)))})
    assert Evaluation(attempts, every, None)(gang, items[0]) == ""
    assert rows_of(tmp_path, items[0])["fitted"]["psnr"] == float("inf")


# --- methods ---


def test_settings_are_given_only_where_method_and_budget_do_not_tell(model):
    one, other = uniform(model, (0, 2)), uniform(model, (0, 3))
    assert [each.setting for each in from_schedules({"a": one})] == [None]
    assert [each.setting for each in from_schedules({"a": one, "b": other})] == ["a", "b"]
    assert len(from_schedules({"a": one, "same as a": one})) == 1


def test_what_a_folder_brings_is_not_solved_a_second_time(small_graph):
    def of(found: list[Method]) -> list[str]:
        return sorted(one.name for one in found)

    alone = from_graph(small_graph, [Method("fitted", None, "a test", 3, None)])
    assert of(alone) == sorted(
        [f"paper, B=3 (jump, gamma {gamma})" for gamma in range(1, 6)]
        + [f"paper, B=3 (fine-step, gamma {gamma})" for gamma in (3, 4)]
        + ["secant, B=3"]
    )
    assert from_graph(small_graph, alone) == []


# --- refusals ---


@pytest.fixture
def refused(capsys, monkeypatch):
    """Runs an evaluation that must be refused before any rank starts; returns what it said."""

    def run(arguments: list[str]) -> str:
        monkeypatch.setattr(
            "cluster.fleet.connection.connect", lambda *_: pytest.fail("a rank was asked for")
        )
        assert evaluate.main(arguments) == _cli.EXIT_REFUSED
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        return said[0]

    return run


def test_a_schedule_of_another_grid_is_refused(tmp_path, refused, small_folders):
    said = refused(command(tmp_path / "out", small_folders[0]))
    assert "fitted, B=3: the schedule is for a grid of 8 steps" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [str, str.upper, "  {}".format])
def test_a_prompt_that_was_calibrated_on_is_refused_by_name(
    tmp_path, refused, small_folders, change
):
    schedules, graph = small_folders
    arguments = command(tmp_path / "out", schedules, "--steps", "8", "--graph", str(graph))
    (tmp_path / "held-out.txt").write_text(f"{HELD_OUT[0]}\n{change(PROMPTS[2])}")
    said = refused(arguments)
    assert PROMPTS[2] in said.lower()
    assert "one of those that the graph was calibrated on" in said


def test_a_folder_without_schedules_is_refused(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    said = refused(command(tmp_path / "out", tmp_path / "empty"))
    assert "there is no schedule (*.json) in" in said


def test_a_file_that_is_no_schedule_is_named(tmp_path, refused):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.json").write_text("{}")
    assert "folder/x.json: " in refused(command(tmp_path / "out", tmp_path / "folder"))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--gang-size", "2", "--baselines"], "gang size 2 does not go with --baselines"),
        (["--reference-steps", "75"], "reference steps 75 must be a multiple of the 50 steps"),
        (["--reference-steps", "5000"], "num_inference_steps 5000 must be between 1 and 1000"),
        (["--graph", "/absent"], "/absent/statistics.parquet"),
    ],
)
def test_requests_that_cannot_be(tmp_path, refused, more, sentence):
    assert sentence in refused(command(tmp_path / "out", None, *more))
    assert not (tmp_path / "out").exists()


def test_pairs_that_the_table_could_not_tell_apart_are_refused(tmp_path, refused):
    arguments = command(tmp_path / "out")
    arguments[3] = str(tmp_path / "p.jsonl")
    rows = '{"prompt": "a", "prompt_id": "x"}\n{"prompt": "b", "prompt_id": "x"}\n'
    (tmp_path / "p.jsonl").write_text(rows)
    assert "two prompts have the prompt_id 'x' and the seed" in refused(arguments)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "guidance_scale": 3}\n')
    assert "overrides pipeline arguments" in refused(arguments)


def test_a_root_of_another_evaluation_is_refused_with_the_difference(tmp_path, evaluated, refused):
    root = Path(shutil.copytree(evaluated, tmp_path / "out"))
    said = refused(command(root, None, "--reference-steps", "150"))
    assert "--reference-steps is 100 there and 150 here" in said


def test_a_dry_run_says_what_would_be_rendered_and_renders_nothing(tmp_path, capsys):
    assert evaluate.main(command(tmp_path / "out", None, "--dry-run", "--seeds", "3")) == 0
    said = capsys.readouterr().out
    assert "6 pairs to do, 0 already done" in said
    assert f"run, {6 * FORWARDS} forwards" in said
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
