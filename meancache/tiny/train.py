"""Makes the embedded model again, from a fixed seed:  python -m meancache.tiny.train --work DIR

Five phases: decoder, encoder, teacher, student, export. Each of the first four leaves a checkpoint
in the work folder, and a phase whose checkpoint is there is not run again. The VAE's two and the
flow's two are independent: with two cores, start `--phases decoder,encoder` beside
`--phases teacher,student`, one thread each, and `--phases export` when both are done.
The shipped weights took 43 minutes that way, on two shared cores.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from safetensors.torch import load_file, save_file

from meancache.tiny import WEIGHTS
from meancache.tiny.architecture import SHIFT, build_pipeline, build_transformer, build_vae
from meancache.tiny.captions import ALL, HELD_OUT, TRAIN, Caption
from meancache.tiny.scorer import FACTS
from meancache.tiny.text import build_text_encoders, build_tokenizers, embed
from meancache.tiny.training.autoencoder import train_decoder, train_encoder
from meancache.tiny.training.distill import USUAL_GUIDANCE, distill
from meancache.tiny.training.flow import (
    LatentBank,
    TextEmbeddings,
    guided_velocity,
    sample,
    train_teacher,
    velocity,
)
from meancache.tiny.training.measure import generate
from meancache.tiny.training.progress import Progress
from meancache.tiny.training.sheet import draw_losses, draw_samples

PHASES = ("decoder", "encoder", "teacher", "student", "export")


@dataclass(frozen=True)
class Settings:
    """How much of everything. The defaults made the shipped weights."""

    seed: int = 7
    decoder_iterations: int = 2600
    decoder_batch: int = 3
    decoder_rate: float = 8e-4
    encoder_iterations: int = 1000
    encoder_batch: int = 4
    encoder_rate: float = 8e-4
    videos_each: int = 128  # drawn per training caption, for the flow
    teacher_iterations: int = 1600
    teacher_batch: int = 32
    teacher_rate: float = 2e-3
    teacher_shift: float = 2.5
    student_iterations: int = 800
    student_batch: int = 32
    student_rate: float = 1e-3
    student_shift: float = 3.0
    watch_every: int = 200  # iterations between looks at the captions' facts
    watch_steps: int = 12
    watch_videos_each: int = 24  # drawn per caption, to compare the samples with


def text_embeddings(
    captions: tuple[Caption, ...], seed: int, device: torch.device
) -> TextEmbeddings:
    """What the pipeline's text side of that seed gives the transformer for these captions."""
    tokens, pooled = embed(build_tokenizers(), build_text_encoders(seed), captions)
    return TextEmbeddings(tokens.to(device), pooled.to(device))


class Training:
    """The phases over one work folder.

    settings: how much of everything; work: the folder of checkpoints, made if missing;
    device: where the networks run.
    """

    def __init__(self, settings: Settings, work: Path, device: torch.device) -> None:
        self._settings = settings
        self._work = work
        self._device = device
        work.mkdir(parents=True, exist_ok=True)

    def run(self, phase: str) -> None:
        """Runs one of the training phases, unless its checkpoint is there already."""
        checkpoint = self._checkpoint(phase)
        if checkpoint.exists():
            print(f"{phase:8s} already done: {checkpoint}", flush=True)
            return
        # The phases must not depend on which of them ran before in this process.
        torch.manual_seed(self._settings.seed + PHASES.index(phase))
        self._curve(phase).unlink(missing_ok=True)
        trained = getattr(self, f"_{phase}")(Progress(self._curve(phase)))
        self._save(trained, checkpoint)

    def _decoder(self, progress: Progress) -> torch.nn.Module:
        settings = self._settings
        vae = build_vae().to(self._device)
        train_decoder(
            vae,
            settings.decoder_iterations,
            settings.decoder_batch,
            settings.decoder_rate,
            settings.seed,
            self._device,
            progress,
        )
        return vae

    def _encoder(self, progress: Progress) -> torch.nn.Module:
        settings = self._settings
        vae = self.vae("decoder")
        train_encoder(
            vae,
            settings.encoder_iterations,
            settings.encoder_batch,
            settings.encoder_rate,
            settings.seed + 1,
            self._device,
            progress,
        )
        return vae

    def _teacher(self, progress: Progress) -> torch.nn.Module:
        settings = self._settings
        return train_teacher(
            build_transformer().to(self._device),
            self._bank(),
            text_embeddings(TRAIN, settings.seed, self._device),
            settings.teacher_iterations,
            settings.teacher_batch,
            settings.teacher_rate,
            settings.teacher_shift,
            settings.seed + 2,
            progress,
            self._watch("teacher", guided_velocity),
        )

    def _student(self, progress: Progress) -> torch.nn.Module:
        settings = self._settings
        return distill(
            self.transformer("teacher"),
            self._bank(),
            text_embeddings(TRAIN, settings.seed, self._device),
            settings.student_iterations,
            settings.student_batch,
            settings.student_rate,
            settings.student_shift,
            settings.seed + 3,
            progress,
            self._watch("student", velocity),
        )

    def export(self, weights: Path, pictures: Path) -> None:
        """Writes the from_pretrained folder, the loss curve and the sample sheet.

        weights: the folder to write, replaced if there; pictures: gets loss.csv, loss.png and
        samples.png. Raises FileNotFoundError where a phase has not run.
        """
        pipe = build_pipeline(
            self.transformer("student"), self.vae("encoder"), self._settings.seed
        ).to("cpu")
        # Written aside first: someone may be loading the old ones.
        fresh = weights.with_name(weights.name + ".partial")
        pipe.save_pretrained(fresh, safe_serialization=True)
        shutil.rmtree(weights, ignore_errors=True)
        fresh.rename(weights)
        pictures.mkdir(parents=True, exist_ok=True)
        rows = "".join(self._curve(phase).read_text() for phase in PHASES[:-1])
        (pictures / "loss.csv").write_text("phase,iteration,loss\n" + rows)
        draw_losses(pictures / "loss.csv", pictures / "loss.png")
        pipe.set_progress_bar_config(disable=True)
        samples = [
            (caption, generate(pipe, caption, seed)) for seed, caption in enumerate(HELD_OUT[:8])
        ]
        draw_samples(samples, every=2, file=pictures / "samples.png")
        print(f"export   {weights}, {pictures}", flush=True)

    def vae(self, phase: str) -> AutoencoderKLHunyuanVideo:
        """The VAE as the phase `decoder` or `encoder` left it."""
        vae = build_vae()
        vae.load_state_dict(self._load(phase))
        return vae.to(self._device)

    def transformer(self, phase: str) -> HunyuanVideoTransformer3DModel:
        """The transformer as the phase `teacher` or `student` left it."""
        transformer = build_transformer()
        transformer.load_state_dict(self._load(phase))
        return transformer.to(self._device)

    def _bank(self) -> LatentBank:
        return LatentBank.draw(TRAIN, self._settings.videos_each, self._settings.seed).to(
            self._device
        )

    def _watch(
        self,
        phase: str,
        velocity_of: Callable[..., torch.Tensor],
    ) -> Callable[[HunyuanVideoTransformer3DModel, int], None]:
        """Says how many facts of held-out captions the samples show, without a decoder.

        The facts of a sample are those of the drawn video whose latents are nearest to it.
        """
        settings = self._settings
        drawn = LatentBank.draw(ALL, settings.watch_videos_each, settings.seed + 10)
        reference = drawn.latents.flatten(1)
        text = text_embeddings(HELD_OUT, settings.seed, self._device)
        noise = torch.randn(
            len(HELD_OUT),
            *drawn.latents.shape[1:],
            generator=torch.Generator().manual_seed(settings.seed + 11),
        )
        guidance = torch.full((len(HELD_OUT),), USUAL_GUIDANCE, device=self._device)

        def watch(transformer: HunyuanVideoTransformer3DModel, iteration: int) -> None:
            if iteration % settings.watch_every:
                return
            latents = sample(
                lambda z, sigma: velocity_of(transformer, z, sigma, text, guidance).detach(),
                noise.to(self._device),
                settings.watch_steps,
                SHIFT,
            )
            nearest = torch.cdist(latents.flatten(1).cpu(), reference).argmin(dim=1)
            shown = [ALL[index] for index in drawn.caption[nearest].tolist()]
            shares = []
            for fact in FACTS:
                pairs = zip(shown, HELD_OUT, strict=True)
                right = sum(getattr(seen, fact) == getattr(asked, fact) for seen, asked in pairs)
                shares.append(f"{fact} {right / len(HELD_OUT):.0%}")
            print(f"{phase:8s} held-out captions at {iteration}: {', '.join(shares)}", flush=True)
            self._save(transformer, self._work / f"{phase}-latest.safetensors")

        return watch

    def _checkpoint(self, phase: str) -> Path:
        return self._work / f"{phase}.safetensors"

    def _curve(self, phase: str) -> Path:
        return self._work / f"{phase}.csv"

    def _save(self, module: torch.nn.Module, path: Path) -> None:
        state = {name: value.cpu().contiguous() for name, value in module.state_dict().items()}
        partial = path.with_suffix(".partial")
        save_file(state, partial)
        partial.replace(path)

    def _load(self, phase: str) -> dict[str, torch.Tensor]:
        checkpoint = self._checkpoint(phase)
        if not checkpoint.exists():
            raise FileNotFoundError(
                f"no checkpoint {checkpoint}: the phase {phase!r} has to run first; "
                "name it in --phases"
            )
        return load_file(checkpoint)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m meancache.tiny.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="where the phases' checkpoints are"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument(
        "--phases",
        default=",".join(PHASES),
        help="which to run, with commas; default: all, in this order",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=WEIGHTS.parent,
        metavar="DIR",
        help="gets weights/ and training/; default: this package",
    )
    arguments = parser.parse_args()
    phases = arguments.phases.split(",")
    unknown = [phase for phase in phases if phase not in PHASES]
    if unknown:
        parser.error(f"unknown phases {', '.join(unknown)}; there are {', '.join(PHASES)}")
    # A second thread gains little on matrices this small, and stalls when cores are shared.
    torch.set_num_threads(1)
    # bf16 products with fp32 sums: a fifth faster where the CPU has them, and the same loss.
    torch.set_float32_matmul_precision("medium")
    training = Training(Settings(), arguments.work, torch.device(arguments.device))
    for phase in phases:
        if phase == "export":
            training.export(arguments.output / "weights", arguments.output / "training")
        else:
            training.run(phase)


if __name__ == "__main__":
    main()
