"""Images a second by how many go into one forward: each size is measured, and written down."""

import json

from jobs._shared.cli import EXIT_REFUSED
from jobs.benchmark import __main__ as benchmark


def test_images_a_second_are_measured_for_each_size_of_a_batch(tmp_path, capsys):
    file = tmp_path / "figures.json"
    flags = ["--sizes", "1", "2", "--side", "16", "--budget", "1", "--repeats", "1"]
    assert benchmark.main(["batch", *flags, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert (figures["tokens"], figures["budget"]) == (1, 1)
    assert list(figures["batches"]) == ["1", "2"]
    for found in figures["batches"].values():
        assert 0 < found["images_per_s"] < found["denoised_per_s"]
    assert "batch 2: " in capsys.readouterr().out


def test_a_size_that_the_model_does_not_take_is_refused(capsys):
    assert benchmark.main(["batch", "--side", "60"]) == EXIT_REFUSED
    assert "height 60 must be a multiple of 16" in capsys.readouterr().err
