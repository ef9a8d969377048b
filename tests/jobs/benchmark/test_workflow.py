"""What the benchmark prints and writes; the figures themselves are for quiet machines."""

import json
import subprocess
import sys

import pytest

from jobs.benchmark import __main__ as benchmark

RATIOS = {
    *("loop_speedup_b10", "loop_speedup_b5", "end_to_end_speedup_b10", "one_by_one_speedup_b10"),
    *("skipped_step_share", "statistics_share", "goodput", "share_of_matmul_rate"),
}


@pytest.mark.slow
def test_the_benchmark_writes_what_it_measured(tmp_path, capsys):
    command = ["--shape", "480p", "--repeats", "1", "--videos", "2"]
    assert benchmark.main([*command, "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["ratios"]) == RATIOS
    assert set(figures) == {
        *("machine", "model", "versions", "shape", "tokens", "steps", "repeats", "compiled"),
        *("seconds", "peak_gib", "ratios"),
    }
    printed = capsys.readouterr().out
    assert all(name in printed for name in RATIOS)


def test_the_benchmark_of_speed_needs_no_ray():
    program = (
        "import sys, jobs.benchmark.speed, jobs.benchmark.workflow; sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_scale_benchmark_ends_with_a_finished_root_of_as_many_rows(run_job, tmp_path):
    options = ["--rows", "300", "--gangs", "1", "--output", str(tmp_path / "b")]
    program = run_job("benchmark", "scale", *options, "--json", str(tmp_path / "figures.json"))
    assert program.returncode == 0, program.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["rows"] == 300
    success = json.loads((tmp_path / "b" / "root" / "manifest" / "_SUCCESS").read_text())
    assert (success["rows"], success["failed"]) == (300, 0)
    assert "300 videos by gangs, 300 receipts" in program.stdout


def test_a_place_that_is_taken_is_refused(run_job, tmp_path):
    program = run_job("benchmark", "scale", "--rows", "1", "--output", str(tmp_path))
    assert program.returncode == 2
    assert "must be a folder that does not exist yet" in program.stderr
