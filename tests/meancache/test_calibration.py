"""Statistics against their definition, element by element; graphs merge like sets."""

import dataclasses
import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from meancache import statistics as measuring
from meancache.calibration import Calibration
from meancache.calibration_file import MULTIGRAPH_SCHEMA
from meancache.carrying import carrying_weights
from meancache.errors import CalibrationError, SolverError
from meancache.grid import Grid
from meancache.methods import fitted_schedules
from meancache.schedule import Schedule
from meancache.statistics import edge_count, edge_list, trajectory_statistics
from meancache.velocity import average_velocity, estimated_velocity

SIGMAS = 7 * np.linspace(1, 0, 13) / (1 + 6 * np.linspace(1, 0, 13))
GRID = Grid.from_sigmas(SIGMAS.tolist())


@pytest.fixture(scope="module")
def statistics(torch_velocities):
    return [
        trajectory_statistics(torch_velocities(seed), GRID, f"p{seed % 2}", seed)
        for seed in range(4)
    ]


def graph_of(items) -> Calibration:
    return Calibration(GRID, {"id": "m"}, {"height": 64}).add(items)


def test_the_gram_matrix_is_the_mean_product_of_velocities(torch_velocities, statistics):
    velocities = torch_velocities(0).numpy().astype(np.float64)
    np.testing.assert_allclose(statistics[0].gram, velocities @ velocities.T / 1000)


def test_the_l1_cost_is_equation_13_of_every_edge(torch_velocities, statistics):
    v = torch_velocities(0).numpy().astype(np.float64)
    h = np.diff(SIGMAS)

    def u(t, s):
        return h[t:s] @ v[t:s] / (SIGMAS[s] - SIGMAS[t])

    for (t, s, span), cost in zip(edge_list(12), statistics[0].l1, strict=True):
        estimate = v[t]
        if span > 1:
            r = t - span
            jvp = (u(r, t) - v[r]) / (SIGMAS[t] - SIGMAS[r])
            estimate = v[t] + (SIGMAS[s] - SIGMAS[t]) * jvp
        assert cost == pytest.approx(np.abs(u(t, s) - estimate).mean(), rel=1e-4, abs=1e-5)


def test_slices_change_nothing(torch_velocities, statistics, monkeypatch):
    monkeypatch.setattr(measuring, "SLICE_BYTES", 100_000)
    sliced = trajectory_statistics(torch_velocities(0), GRID, "p0", 0)
    np.testing.assert_allclose(sliced.l1, statistics[0].l1, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(sliced.gram, statistics[0].gram)


def test_a_trajectory_of_50_steps_leaves_less_than_a_megabyte():
    grid = Grid.from_sigmas(np.linspace(1, 0, 51).tolist())
    item = trajectory_statistics(torch.randn(50, 5000), grid, "p", 0)
    assert item.gram.nbytes + item.l1.nbytes < 1e6
    assert len(Calibration(grid).add([item]).statistics_parquet()) < 1e6


def test_merging_twice_changes_nothing(statistics):
    graph = graph_of(statistics)
    again = graph.merge(graph_of(statistics[1:3])).merge(graph)
    assert again.id == graph.id
    assert len(again.trajectories) == 4
    np.testing.assert_array_equal(again.costs(), graph.costs())


def test_merging_is_the_same_in_any_order(statistics):
    one, other = graph_of(statistics[:2]), graph_of(statistics[2:])
    assert one.merge(other).id == other.merge(one).id
    assert one.merge(other).statistics_parquet() == other.merge(one).statistics_parquet()


def test_costs_are_the_mean_over_trajectories_and_infinite_where_no_edge_is(statistics):
    costs = graph_of(statistics).costs()
    assert costs.shape == (5, 12, 13)
    edges = edge_list(12)
    start, stop, span = edges[200]
    mean = np.mean([item.l1[200] for item in statistics])
    assert costs[span - 1, start, stop] == pytest.approx(mean)
    assert np.isfinite(costs).sum() == len(edges)
    assert np.isinf(costs[2, 2, 5])  # span 3 has no history at step 2
    np.testing.assert_allclose(costs[0, range(12), range(1, 13)], 0.0, atol=1e-6)


def test_parquet_keeps_a_graph(statistics):
    graph = graph_of(statistics)
    loaded = Calibration.from_parquet(graph.statistics_parquet())
    assert loaded.id == graph.id
    assert loaded.model == {"id": "m"}
    assert loaded.conditions == {"height": 64}


def test_the_multigraph_is_an_edge_table_that_anyone_can_read(statistics):
    table = pq.read_table(io.BytesIO(graph_of(statistics).multigraph_parquet()))
    assert table.schema.equals(MULTIGRAPH_SCHEMA)
    assert table.schema.metadata[b"schema"] == b"2"
    assert table.num_rows == len(edge_list(12))
    row = table.to_pylist()[200]
    l1 = [item.l1[200] for item in statistics]
    assert row["cost_mean"] == pytest.approx(np.mean(l1))
    assert row["cost_max"] == max(l1)
    assert row["count"] == 4


def test_graphs_of_different_settings_do_not_merge(statistics):
    other = Calibration(GRID, {"id": "m"}, {"height": 128}).add(statistics)
    with pytest.raises(CalibrationError, match=r"conditions\.height: 64 and 128"):
        graph_of(statistics).merge(other)
    coarse = Grid.from_sigmas(np.linspace(1, 0, 13).tolist())
    with pytest.raises(CalibrationError, match="grids differ"):
        graph_of(statistics).merge(Calibration(coarse, {"id": "m"}, {"height": 64}))


def test_a_diverged_trajectory_is_refused(torch_velocities):
    velocities = torch_velocities(0).clone()
    velocities[3, 7] = float("nan")
    with pytest.raises(CalibrationError, match="not finite"):
        trajectory_statistics(velocities, GRID, "p", 0)


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 50])
def test_edges_are_counted_without_being_listed(steps):
    assert edge_count(steps) == len(edge_list(steps))


def test_statistics_that_no_trajectory_gives_are_refused(statistics):
    good = statistics[0]
    for change in (
        {"elements": 0},
        {"l1": -good.l1},
        {"gram": -good.gram},
        {"gram": np.full_like(good.gram, 1e300)},
    ):
        with pytest.raises(CalibrationError, match=r"the (statistics|trajectory) of 'p0', seed 0"):
            dataclasses.replace(good, **change)


def test_an_empty_graph_has_no_costs():
    with pytest.raises(CalibrationError, match="no trajectory"):
        Calibration(GRID).costs()


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_a_changed_byte_is_refused_or_without_effect(statistics):
    graph = graph_of(statistics[:1])
    data = graph.statistics_parquet()
    for place in range(0, len(data), 37):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        try:
            assert Calibration.from_parquet(bytes(damaged)).id == graph.id
        except CalibrationError:
            continue


def test_files_that_are_no_graph_are_refused(statistics):
    good = pq.read_table(io.BytesIO(graph_of(statistics).statistics_parquet()))
    for data in (
        b"",
        b"PAR1" * 10,
        parquet(pa.table({"a": [1]})),
        parquet(good.replace_schema_metadata({b"schema": b"2"})),
        parquet(good.replace_schema_metadata({b"schema": b"2", b"setting": b"[]"})),
        parquet(good.drop_columns(["gram"])),
    ):
        with pytest.raises(CalibrationError):
            Calibration.from_parquet(data)


def test_trajectories_to_run_again_are_spread_over_those_with_a_prompt(torch_velocities):
    grid = Grid.from_sigmas(np.linspace(1, 0, 13).tolist())
    velocities = torch_velocities(0)
    prompts = ["a", "", "b", "c", "d", "e"]
    graph = Calibration(grid).add(
        trajectory_statistics(velocities, grid, f"p{number}", 0, prompt)
        for number, prompt in enumerate(prompts)
    )
    assert [item.prompt for item in graph.spread(2)] == ["a", "c"]
    assert [item.prompt for item in graph.spread(99)] == ["a", "b", "c", "d", "e"]
    mute = Calibration(grid).add([trajectory_statistics(velocities, grid, "p", 0)])
    with pytest.raises(CalibrationError, match="holds no prompts"):
        mute.spread(1)


ELSEWHERE = Grid.from_sigmas([1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.0])


def test_a_saved_calibration_loads_as_it_was(statistics, tmp_path):
    calibration = graph_of(statistics)
    calibration.save(tmp_path / "calibration.parquet")
    assert Calibration.load(tmp_path / "calibration.parquet").id == calibration.id


def test_a_file_that_is_missing_or_no_calibration_is_named(tmp_path):
    for content, sentence in ((None, "No such file"), (b"PAR1", "not a calibration")):
        path = tmp_path / "calibration.parquet"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CalibrationError, match=sentence) as refusal:
            Calibration.load(path)
        assert str(path) in str(refusal.value)


def test_on_its_own_grid_a_calibration_is_itself(statistics):
    calibration = graph_of(statistics)
    assert calibration.on(GRID) is calibration
    assert calibration.on(list(GRID.sigmas)) is calibration
    assert calibration.on(ELSEWHERE).on(GRID) is calibration


def test_carried_it_stays_the_calibration_it_was_for_another_grid(statistics):
    calibration = graph_of(statistics)
    carried = calibration.on(ELSEWHERE)
    assert carried.grid == ELSEWHERE
    assert (carried.id, carried.origin) == (calibration.id, calibration)
    assert carried.gram().shape == (8, 8)
    weights = carrying_weights(GRID, ELSEWHERE)
    np.testing.assert_allclose(carried.gram(), weights @ calibration.gram() @ weights.T)
    there = Grid.from_sigmas([1.0, 0.8, 0.6, 0.4, 0.0])
    np.testing.assert_array_equal(carried.on(there).gram(), calibration.on(there).gram())


def test_costs_in_rms_are_those_of_the_residuals(torch_velocities, statistics):
    """As eq. 13, with a root of mean squares: the same edges, from the velocities themselves."""
    costs = graph_of(statistics[:1]).costs_in_rms()
    v = torch_velocities(0).double().numpy()
    for t, s, span in edge_list(12)[::17]:
        residual = average_velocity(SIGMAS, t, s) - estimated_velocity(SIGMAS, t, s, span)
        expected = np.sqrt(np.mean((residual @ v) ** 2))
        assert costs[span - 1, t, s] == pytest.approx(expected, abs=1e-6)
    assert np.isfinite(costs).sum() == len(edge_list(12))


def test_what_was_carried_is_neither_saved_nor_merged_nor_asked_for_l1_costs(statistics, tmp_path):
    carried = graph_of(statistics).on(ELSEWHERE)
    for use in (
        lambda: carried.save(tmp_path / "c.parquet"),
        lambda: carried.merge(carried),
        carried.costs,
        carried.multigraph_parquet,
    ):
        with pytest.raises(CalibrationError, match="carried from 12 steps"):
            use()


def test_sigmas_that_are_no_grid_are_refused(statistics):
    for sigmas in ([1.0, 1.0, 0.0], [1.0], ["a"], [1.0, 0.5]):
        with pytest.raises(CalibrationError, match="not a grid"):
            graph_of(statistics).on(sigmas)


@pytest.mark.parametrize("method", ["fitted", "secant", "paper"])
def test_a_schedule_is_solved_for_any_grid(statistics, method):
    schedule = graph_of(statistics).schedule(ELSEWHERE, 4, method)
    assert schedule.grid == ELSEWHERE
    assert (schedule.method, schedule.nfe, schedule.budget) == (method, 4, 4)
    assert schedule.calibration["graph"] == graph_of(statistics).id
    assert schedule.calibration["carried"] == {
        "grid": {"from": str(GRID), "to": "8 steps, sigma 1, 0.95, ..., 0.4, 0"}
    }
    assert Schedule.loads(schedule.dumps()).id == schedule.id


def test_a_schedule_on_the_own_grid_was_carried_nowhere(statistics):
    schedule = graph_of(statistics).schedule(GRID, 4)
    assert "carried" not in schedule.calibration
    assert schedule.edges == fitted_schedules(graph_of(statistics), [4])[4].edges


def test_conditions_are_open_unless_they_are_given_and_then_say_what_was_carried(statistics):
    calibration = graph_of(statistics)
    assert calibration.schedule(GRID, 4).conditions == {}
    schedule = calibration.schedule(GRID, 4, conditions={"height": 96, "width": 64})
    assert schedule.conditions == {"height": 96, "width": 64}
    assert schedule.calibration["carried"] == {"height": {"from": 64, "to": 96}}
    known, carried = (calibration.schedule(GRID, 4, conditions={"height": h}) for h in (64, 96))
    assert carried.calibration["psnr_estimate"] < known.calibration["psnr_estimate"]


def test_strict_carries_to_another_grid_alone(statistics):
    calibration = graph_of(statistics)
    assert calibration.schedule(ELSEWHERE, 4, strict=True).conditions == {"height": 64}
    with pytest.raises(CalibrationError, match="strict allows carrying to another grid alone"):
        calibration.schedule(GRID, 4, conditions={"height": 96}, strict=True)


def test_a_target_takes_the_smallest_budget_that_is_estimated_to_reach_it(statistics):
    calibration = graph_of(statistics)
    schedule = calibration.schedule(ELSEWHERE, target_psnr=20)
    assert schedule.calibration["psnr_estimate"] >= 20
    fewer = calibration.schedule(ELSEWHERE, schedule.budget - 1)
    assert fewer.calibration["psnr_estimate"] < 20
    assert calibration.schedule(ELSEWHERE, target_psnr=1e6).nfe == 8
    for neither_nor_both in ({}, {"budget": 4, "target_psnr": 20}):
        with pytest.raises(SolverError, match="either a budget of forwards or a target"):
            calibration.schedule(ELSEWHERE, **neither_nor_both)


def test_solving_needs_no_torch(statistics, tmp_path):
    """In a process of its own, as this one has imported it."""
    graph_of(statistics).save(tmp_path / "calibration.parquet")
    script = (
        "import sys; from meancache import Calibration; "
        f"c = Calibration.load({str(tmp_path / 'calibration.parquet')!r}); "
        "print(c.schedule([1.0, 0.8, 0.6, 0.4, 0.0], 3).nfe, 'torch' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert said.split() == ["3", "False"]


BELOW = (0.06, 0.03)


@pytest.fixture
def deeper(torch_velocities) -> Calibration:
    """Of trajectories that were recorded at two levels below those of the grid."""
    grid = Grid.from_sigmas([*GRID.sigmas[2:-1], 0.0])
    return Calibration(grid, {"id": "m"}, {"height": 64}, below=BELOW).add(
        trajectory_statistics(torch_velocities(seed), grid, "p", seed, below=2) for seed in (0, 1)
    )


def test_levels_below_change_nothing_on_the_grid_itself(deeper, torch_velocities):
    plain = Calibration(deeper.grid).add(
        trajectory_statistics(torch_velocities(seed)[:10], deeper.grid, "p", seed)
        for seed in (0, 1)
    )
    np.testing.assert_allclose(deeper.gram(), plain.gram())
    np.testing.assert_allclose(deeper.costs(), plain.costs(), rtol=1e-5)


def test_levels_below_are_where_carrying_reaches(deeper, torch_velocities):
    lower = Grid.from_sigmas([*deeper.grid.sigmas[:-1], *BELOW, 0.0])
    velocities = np.stack([torch_velocities(seed).double().numpy() for seed in (0, 1)])
    expected = np.mean(velocities @ velocities.swapaxes(1, 2), axis=0) / 1000
    np.testing.assert_allclose(deeper.on(lower).gram(), expected)
    with pytest.raises(CalibrationError, match=r"last noise level 0\.02 lies below"):
        deeper.on([0.9, 0.5, 0.02, 0.0])


def test_levels_below_are_saved_and_merge_with_their_like_alone(deeper, tmp_path):
    deeper.save(tmp_path / "calibration.parquet")
    loaded = Calibration.load(tmp_path / "calibration.parquet")
    assert (loaded.id, loaded.below) == (deeper.id, BELOW)
    plain = Calibration(deeper.grid, {"id": "m"}, {"height": 64})
    with pytest.raises(CalibrationError, match="grids differ"):
        deeper.merge(plain)
    assert plain.merge(deeper.plain()).gram() == pytest.approx(deeper.gram())
