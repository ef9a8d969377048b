"""Statistics against their definition, element by element; graphs merge like sets."""

import dataclasses
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from meancache import calibration as stability
from meancache.calibration import (
    MULTIGRAPH_SCHEMA,
    Calibration,
    edge_count,
    edge_list,
    trajectory_statistics,
)
from meancache.errors import CalibrationError
from meancache.grid import Grid

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
    monkeypatch.setattr(stability, "SLICE_BYTES", 100_000)
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
