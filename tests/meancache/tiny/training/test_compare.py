"""The picture of one video rendered in several ways."""

import re
import sys

import numpy as np
from PIL import Image

from jobs.render.schedules import SHIPPED
from meancache.tiny.captions import HELD_OUT
from meancache.tiny.training import compare


def test_each_way_has_a_row_and_schedules_come_closer_than_fewer_steps(
    tmp_path, monkeypatch, capsys
) -> None:
    files = [str(SHIPPED / "tiny" / f"{method}-b10.json") for method in ("fitted", "paper")]
    picture = tmp_path / "same.png"
    monkeypatch.setattr(
        sys, "argv", ["compare", *files, "--caption", "5", "--output", str(picture)]
    )
    compare.main()
    said = capsys.readouterr().out
    assert said.splitlines()[0] == HELD_OUT[5].text
    fitted, paper, euler = map(float, re.findall(r"([\d.]+) dB", said))
    assert fitted > paper > euler > 15
    pixels = np.asarray(Image.open(picture))
    every = [pixels[44 + n * 102 : 140 + n * 102, 288:] for n in range(7)]
    rows, differences = [every[0], *every[1::2]], every[2::2]
    assert not any(np.array_equal(rows[0], row) for row in rows[1:])
    # What is further away in decibels is so in the picture.
    distances = [np.abs(row.astype(int) - rows[0]).mean() for row in rows]
    assert distances == sorted(distances)
    shown = [row.mean() for row in differences]
    assert shown == sorted(shown)
