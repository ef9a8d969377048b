"""The training script, a couple of iterations of each phase."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoPipeline

from meancache.tiny.captions import HELD_OUT
from meancache.tiny.latents import measure
from meancache.tiny.shapes import random_centres, render
from meancache.tiny.train import PHASES, Settings, Training
from meancache.tiny.training.measure import generate

FEW = Settings(
    decoder_iterations=2,
    decoder_batch=1,
    encoder_iterations=2,
    encoder_batch=1,
    videos_each=1,
    teacher_iterations=2,
    teacher_batch=4,
    student_iterations=2,
    student_batch=4,
    watch_every=2,
    watch_steps=2,
    watch_videos_each=1,
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("tiny-training")
    training = Training(FEW, work, torch.device("cpu"))
    for phase in PHASES[:-1]:
        training.run(phase)
    return work


def test_all_phases_export_a_pipeline_that_renders_and_the_pictures(
    work: Path, tmp_path: Path
) -> None:
    training = Training(FEW, work, torch.device("cpu"))
    training.export(tmp_path / "weights", tmp_path / "training")
    pipe = HunyuanVideoPipeline.from_pretrained(tmp_path / "weights")
    pipe.set_progress_bar_config(disable=True)
    assert generate(pipe, HELD_OUT[0], seed=0, steps=2).shape == (9, 64, 64, 3)
    pictures = {file.name for file in (tmp_path / "training").iterdir()}
    assert pictures == {"loss.csv", "loss.png", "samples.png"}


def test_a_phase_whose_checkpoint_is_there_is_not_run_again(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (work / "teacher.safetensors").stat().st_mtime_ns
    Training(FEW, work, torch.device("cpu")).run("teacher")
    assert (work / "teacher.safetensors").stat().st_mtime_ns == before
    assert "already done" in capsys.readouterr().out


def test_a_seed_gives_the_same_weights_again(work: Path, tmp_path: Path) -> None:
    Training(FEW, tmp_path, torch.device("cpu")).run("teacher")
    again = (tmp_path / "teacher.safetensors").read_bytes()
    assert again == (work / "teacher.safetensors").read_bytes()


def test_a_phase_before_its_turn_is_refused_naming_the_missing_one(tmp_path: Path) -> None:
    training = Training(FEW, tmp_path, torch.device("cpu"))
    with pytest.raises(FileNotFoundError, match=re.escape("the phase 'teacher' has to run first")):
        training.run("student")


def test_latents_of_two_shapes_differ_by_a_fifth_of_the_latents_spread() -> None:
    centre = random_centres(1, torch.Generator().manual_seed(0))
    latents = {
        caption.shape: measure(render([caption], centre) * 2 - 1)
        for caption in HELD_OUT
        if caption.background == "dark" and caption.colour == "red"
    }
    spread = torch.cat([measure(render([c], centre) * 2 - 1) for c in HELD_OUT]).std(dim=0)
    shapes = list(latents.values())
    for one, other in ((0, 1), (0, 2), (1, 2)):
        difference = (shapes[one] - shapes[other]).square().mean().sqrt()
        assert difference > 0.2 * spread.square().mean().sqrt()
