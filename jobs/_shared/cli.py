"""What the jobs' command lines share: flags, config files, exit codes.

Exit codes: 0 all asked for is there; 1 a real error, or `verify` found damage; 2 the input was
refused before any rank started; 3 some items failed for good; 130 stopped by hand (Ctrl-C); 143
stopped on request (SIGTERM, as `ray job stop` sends it).
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import TextIO

import configargparse
import yaml

from cluster.fleet.draining import EXIT_TERMINATED, Stopped, stoppable
from cluster.fleet.gang import GangError
from cluster.models.model import DTYPES
from cluster.models.pipelines import PIPELINES
from cluster.store import StoreError
from jobs._shared.configs import FleetConfig, ModelConfig
from jobs._shared.numbers import finite, positive
from meancache.errors import InputError

EXIT_ERROR, EXIT_REFUSED, EXIT_FAILED_ITEMS = 1, 2, 3
EXIT_INTERRUPTED = 130


class _YamlText(configargparse.ConfigFileParser):
    """YAML whose values stay text: to YAML itself, the range 2:16 is the number 136."""

    def get_syntax_description(self) -> str:
        return "YAML, names as the flags'"

    def parse(self, stream: TextIO) -> dict[str, str]:
        try:
            content = yaml.load(stream, Loader=yaml.BaseLoader) or {}
        except yaml.YAMLError as error:
            sentence = " ".join(str(error).split())
            raise configargparse.ConfigFileParserException(f"not YAML: {sentence}") from error
        if not isinstance(content, dict):
            raise configargparse.ConfigFileParserException("not a mapping of flags to values")
        return {
            str(name).replace("_", "-"): ",".join(value) if isinstance(value, list) else value
            for name, value in content.items()
        }


# Flags that were called otherwise.
_RENAMED = {"--peers": "--baselines"}


class _Parser(configargparse.ArgParser):
    """A parser that says which flag was probably meant."""

    def error(self, message: str) -> None:
        """Refuses the command line."""
        for unknown in re.findall(r"--[\w-]+", message.partition("unrecognized arguments:")[2]):
            known = [name for name in self._option_string_actions if name.startswith("--")]
            meant = _RENAMED.get(unknown) or next(iter(get_close_matches(unknown, known, 1)), None)
            if meant in known:
                message += f"; did you mean {meant}?"
        super().error(message)


def job_parser(module: str, description: str, example: str) -> configargparse.ArgParser:
    """A parser with what every job takes.

    Args:
        module: 'jobs.render', for the usage line.
        description: what the job does, for people.
        example: a command to copy.
    """
    parser = _Parser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        config_file_parser_class=_YamlText,
        add_config_file_help=False,
        add_env_var_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        is_config_file=True,
        metavar="FILE.yaml",
        help="read flags from a YAML file, by the same names; flags given here win",
    )
    return parser


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    """--output ROOT."""
    parser.add_argument(
        "--output",
        required=True,
        metavar="ROOT",
        help=f"{what}: a directory or s3://bucket/prefix (endpoint and credentials from the "
        "standard AWS_* environment, or as boto3 finds them), gs://bucket/prefix or "
        "az://container/prefix",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model, --revision, --dtype and the pipeline's call arguments."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        required=True,
        metavar="M",
        help="tiny (embedded, runs on a CPU), a Hugging Face id such as "
        "hunyuanvideo-community/HunyuanVideo, or a folder in save_pretrained layout; pipelines: "
        f"{', '.join(PIPELINES)}",
    )
    group.add_argument("--revision", help="branch, tag or commit of a Hugging Face id")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="default: float32 for tiny, bfloat16 otherwise",
    )
    group = parser.add_argument_group("video or image (defaults: the model's own)")
    group.add_argument("--height", type=int, metavar="PIXELS")
    group.add_argument("--width", type=int, metavar="PIXELS")
    group.add_argument("--num-frames", type=int, metavar="N", help="of a video")
    group.add_argument("--guidance-scale", type=finite, metavar="G")
    group.add_argument(
        "--negative-prompt",
        metavar="TEXT",
        help="what not to show; HunyuanVideo, FLUX.1, Qwen-Image and Qwen-Image-2.1 have guidance "
        "in two forwards only where one is given, and ' ' will do",
    )
    group.add_argument(
        "--true-cfg-scale",
        type=finite,
        metavar="G",
        help="scale of that guidance of these four; the others have --guidance-scale",
    )
    group.add_argument(
        "--steps", type=int, metavar="T", help="denoising steps of the grid (num_inference_steps)"
    )


def add_lora(parser: argparse.ArgumentParser, by_row: bool = True) -> None:
    """--lora, which may be repeated; `by_row` where rows may name their own instead."""
    rows = "; a row's column lora, where it has one, takes the place of all of them"
    parser.add_argument(
        "--lora",
        action="append",
        metavar="PATH_OR_ID[:SCALE]",
        help="a LoRA adapter of the transformer, as a .safetensors file, a folder with one, an "
        "s3:// uri (or gs://, az://) or a Hugging Face id, and its scale (default 1); several by "
        "repeating it" + (rows if by_row else ""),
    )


def add_prompts(
    parser: argparse.ArgumentParser, required: bool = True, overrides: bool = False
) -> None:
    """--prompts P and --prompt-column; may have arguments of their own where `overrides` is set."""
    more = " image, negative_prompt, height and other pipeline arguments that override the flags"
    parser.add_argument(
        "--prompts",
        required=required,
        metavar="P",
        help="a .txt (one prompt a line), .jsonl, .csv, .tsv or .parquet file, as it is, .gz or "
        ".zst, or a folder or glob of them, local or s3://, gs:// or az://; columns: prompt, and "
        f"if wanted prompt_id, seed{',' + more if overrides else ''}",
    )
    parser.add_argument(
        "--prompt-column",
        default="prompt",
        metavar="NAME",
        help="the column that holds the prompts (default: prompt)",
    )


def add_fleet(parser: argparse.ArgumentParser, gangs: str = "all the cluster has") -> None:
    """--gang-size, --gangs (with what its default is, in words), --wait, --device, --dry-run."""
    group = parser.add_argument_group("cluster")
    group.add_argument(
        "--gang-size",
        type=positive,
        default=1,
        metavar="N",
        help="ranks that share a video by sequence parallelism = GPUs a video (default 1)",
    )
    group.add_argument(
        "--gangs",
        metavar="A[:B]",
        help=f"how many gangs, fixed or autoscaled between A and B (default: {gangs})",
    )
    group.add_argument(
        "--wait",
        type=positive,
        metavar="MINUTES",
        help="end, with exit code 2, when no gang could start for so long because nothing is free "
        "on the cluster (default: wait, and say every 5 minutes what for)",
    )
    group.add_argument(
        "--device",
        choices=("gpu", "cpu"),
        help="default: GPUs where a node of the cluster has one, or its autoscaler may start one",
    )
    group.add_argument("--dry-run", action="store_true", help="print what would be done, and stop")


def model_config(options: argparse.Namespace) -> ModelConfig:
    """The flags of `add_model`."""
    names = [one.name for one in fields(ModelConfig) if one.name != "lora"]
    # A list in a file of flags comes as one text.
    lora = (one for given in getattr(options, "lora", None) or () for one in given.split(","))
    return ModelConfig(**{name: getattr(options, name) for name in names}, lora=tuple(lora))


def fleet_config(options: argparse.Namespace) -> FleetConfig:
    """The flags of `add_fleet`."""
    batch = getattr(options, "batch", 1)
    return FleetConfig(options.gang_size, options.gangs, options.wait, options.device, batch)


def run_job(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    run: Callable[[argparse.Namespace], int],
    resumes: bool = True,
) -> int:
    """Parses the flags, runs, and turns what can go wrong into a sentence and an exit code.

    Args:
        parser: of the job's flags.
        argv: the arguments, or None for the process's own.
        run: the workflow, by parsed flags; returns the exit code.
        resumes: whether the same command goes on where this one ends early.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # In a job's log the lines of stdout and stderr should stand in the order they were said.
        sys.stdout.reconfigure(line_buffering=True)
    options = parser.parse_args(argv)
    try:
        with stoppable():
            return run(options)
    except InputError as error:
        return _say(error, EXIT_REFUSED)
    except KeyboardInterrupt as error:
        return _stopped(error, EXIT_INTERRUPTED, resumes)
    except Stopped as error:
        return _stopped(error, EXIT_TERMINATED, resumes)
    except (StoreError, GangError, OSError) as error:
        return _say(error, EXIT_ERROR, resumes)
    except Exception as error:
        if not _is_of_ray(error):
            raise
        from cluster.fleet.ray_errors import told  # with Ray, which is there

        return _say(told(error), EXIT_ERROR, resumes)


def _is_of_ray(error: Exception) -> bool:
    """Whether it is one of Ray's own errors, which nothing raises before Ray is imported."""
    ray = sys.modules.get("ray.exceptions")
    return ray is not None and isinstance(error, ray.RayError)


def _stopped(error: BaseException, code: int, resumes: bool) -> int:
    """Says how far it came, where `progress` noted that, and what to do."""
    came = next(iter(getattr(error, "__notes__", [])), "what is committed stays")
    goes_on = "the same command resumes" if resumes else "the same command begins again"
    print(f"stopped: {came}; {goes_on}", file=sys.stderr)
    return code


def _say(error: object, code: int, resumes: bool = False) -> int:
    print(f"error: {error}{' (the same command resumes)' if resumes else ''}", file=sys.stderr)
    return code
