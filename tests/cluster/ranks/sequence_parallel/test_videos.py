"""Ranks share out a video of any number of tokens, and draw what one rank draws."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.fleet.gang import Gang
from cluster.ranks import RankBuilder, RenderRequest, rank_builder
from cluster.ranks.sequence_parallel.videos import missing, shown_tokens
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from tests.support import ranks

few = st.integers(1, 12)


@given(few, few, few, st.sampled_from([2, 3, 4, 6, 8]))
def test_the_fewest_rows_or_columns_are_added(frames, rows, columns, ranks_):
    sizes = {(0, 0): frames * rows * columns}
    for more in range(ranks_):
        sizes[more, 0] = frames * (rows + more) * columns
        sizes[0, more] = frames * rows * (columns + more)
    edge = missing((frames, rows, columns), ranks_)
    assert sizes[edge] == min(tokens for tokens in sizes.values() if tokens % ranks_ == 0)


def test_848x480_with_129_frames_takes_8_ranks_with_three_columns_more():
    assert missing((33, 30, 53), 8) == (0, 3)


@pytest.mark.parametrize("shares", [1, 2, 4])
@pytest.mark.parametrize("edge", [(0, 1), (1, 0)])
def test_words_and_the_video_are_shown_and_the_edge_is_hidden(shares, edge):
    frames, rows, columns = size = (2, 3, 3)
    text = 4
    cells = list(itertools.product(range(frames), range(rows + edge[0]), range(columns + edge[1])))
    share, words = len(cells) // shares, text // shares
    # As ranks have them: a share of the video and one of the text, rank after rank.
    sequence: list[tuple[int, int, int] | None] = []
    for rank in range(shares):
        sequence += cells[rank * share : (rank + 1) * share] + [None] * words
    shown = [
        index
        for index, cell in enumerate(sequence)
        if cell is None or (cell[1] < rows and cell[2] < columns)
    ]
    found = shown_tokens(size, edge, len(sequence), shares, torch.device("cpu"))
    assert found.tolist() == shown


@pytest.mark.slow
def test_compiled_ranks_hide_the_edge_too(model, gang_of_one):
    odd = {**model.defaults, "height": 48, "width": 48, "num_inference_steps": 4}
    item = plan_items([Prompt(1, "a red circle moving left", "p", 3)], model, odd)[0]
    asked = RenderRequest(item, None)
    with Gang(RankBuilder(model, compiled=True), 2) as gang:
        compiled = gang.run(ranks.latents, asked)
    torch.testing.assert_close(compiled, gang_of_one.run(ranks.latents, asked), atol=2e-4, rtol=0)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_whose_number_does_not_divide_the_tokens_draw_what_one_draws(
    model, gang_of_one, world_size
):
    odd = {**model.defaults, "height": 48, "width": 48, "num_inference_steps": 4}
    assert model.tokens(odd) == 27
    model.check_arguments(odd, world_size)
    prompts = ["a red circle moving left on a dark background", "red circle moving left"]
    even = {**model.defaults, "num_inference_steps": 4}  # and whole again after it
    items = [
        plan_items([Prompt(1, prompt, "p", 3)], model, arguments)[0]
        for prompt, arguments in [(prompts[0], odd), (prompts[1], odd), (prompts[0], even)]
    ]
    with Gang(rank_builder(model), world_size) as gang:
        for item in items:
            asked = RenderRequest(item, None)
            alone, shared = gang_of_one.run(ranks.latents, asked), gang.run(ranks.latents, asked)
            torch.testing.assert_close(shared, alone, atol=2e-4, rtol=0)
