"""Where a model's configuration files lie: a local folder or the Hugging Face Hub.

Both are written by strangers: whatever is wrong with them is a ModelError.
"""

from __future__ import annotations

import hashlib
import json
import re
from math import prod
from pathlib import Path
from typing import Any, Protocol

from meancache.errors import InputError

# The limit of a safetensors file's header, as its own library has it.
MOST_HEADER = 100_000_000
# How long the Hub may take to answer for a header.
ANSWER_S = 10.0
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class ModelError(InputError):
    """A model, its arguments or a gang for it cannot be; the message says why and the fix."""


class ModelFiles(Protocol):
    """A pipeline's files."""

    source: str
    """What from_pretrained takes."""

    def config(self, name: str) -> dict[str, Any]:
        """A configuration file, by its path. Raises ModelError."""

    def revision(self) -> str:
        """The Hub's commit, or a fingerprint of the folder's files."""

    def numbers(self, name: str) -> int:
        """How many numbers a safetensors file holds, by its path; only its header is read.

        Raises ModelError where there is no such file, or it cannot be asked for.
        """


def find_files(model_id: str, revision: str | None, folder: Path) -> ModelFiles:
    """The files of a model: `folder` where there is one, else those of a Hugging Face id.

    Raises:
        ModelError: it is neither.
    """
    if folder.is_dir():
        return _Folder(folder)
    if _HUB_ID.fullmatch(model_id):
        return _HubRepository(model_id, revision)
    raise ModelError(
        f"unknown model {model_id!r}: give 'tiny', a folder in save_pretrained layout or a "
        "Hugging Face id such as hunyuanvideo-community/HunyuanVideo"
    )


class _Folder:
    """A pipeline's files in a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = str(folder.absolute())

    def config(self, name: str) -> dict[str, Any]:
        try:
            return _json_object((self.folder / name).read_bytes())
        except (OSError, ValueError) as error:
            raise ModelError(
                f"model {self.folder}: {name} is missing or not JSON; give a folder that "
                "save_pretrained wrote"
            ) from error

    def revision(self) -> str:
        """A fingerprint: names, sizes and both ends of every file, as whole weights are slow."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.suffix not in (".json", ".safetensors", ".txt", ".model"):
                continue
            size = path.stat().st_size
            digest.update(f"{path.relative_to(self.folder).as_posix()}\0{size}\0".encode())
            with path.open("rb") as file:
                digest.update(file.read(2**20))
                file.seek(max(0, size - 2**20))
                digest.update(file.read())
        return digest.hexdigest()[:40]

    def numbers(self, name: str) -> int:
        try:
            return _numbers_in(self.folder / name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"model {self.folder}: {name} is missing or not a safetensors file"
            ) from error


class _HubRepository:
    """A pipeline's files on the Hugging Face Hub, or in its local cache."""

    def __init__(self, model_id: str, revision: str | None) -> None:
        self.model_id = model_id
        self.source = model_id
        self.wanted = revision

    def config(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        try:
            return _json_object(path.read_bytes())
        except ValueError as error:
            raise ModelError(f"model {self.model_id}: {name} is not a JSON object") from error

    def revision(self) -> str:
        # The cache keeps each commit's files in a folder named by the commit.
        return self._path("model_index.json").parent.name

    def numbers(self, name: str) -> int:
        from huggingface_hub import HfApi, try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(self.model_id, name, revision=self.wanted)
            if isinstance(cached, str):
                return _numbers_in(Path(cached))
            found = HfApi().parse_safetensors_file_metadata(
                self.model_id, name, revision=self.wanted, timeout=ANSWER_S
            )
        except Exception as error:  # its client's transport errors have no common type
            raise ModelError(
                f"model {self.model_id}: the header of {name} cannot be read from the Hugging Face "
                f"Hub ({type(error).__name__})"
            ) from error
        return sum(found.parameter_count.values())

    def _path(self, name: str) -> Path:
        from huggingface_hub import (
            constants,
            get_hf_file_metadata,
            hf_hub_download,
            hf_hub_url,
            try_to_load_from_cache,
        )

        try:
            cached = try_to_load_from_cache(self.model_id, name, revision=self.wanted)
            if not isinstance(cached, str) and not constants.HF_HUB_OFFLINE:
                # A download tries for half a minute, and speaks, where no Hub answers.
                url = hf_hub_url(self.model_id, name, revision=self.wanted)
                get_hf_file_metadata(url, timeout=ANSWER_S)
            return Path(hf_hub_download(self.model_id, name, revision=self.wanted))
        except Exception as error:  # its client's transport errors have no common type
            raise ModelError(
                f"unknown model {self.model_id!r} (revision {self.wanted or 'main'}): its {name} "
                f"is neither on the Hugging Face Hub nor in the local cache "
                f"({type(error).__name__}); check the id, the network and HF_TOKEN"
            ) from error


def _numbers_in(path: Path) -> int:
    """How many numbers a safetensors file holds: 8 bytes say how long its header is, in JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MOST_HEADER:
            raise ValueError("not a safetensors file")
        header = _json_object(file.read(length))
    return sum(prod(one["shape"]) for name, one in header.items() if name != "__metadata__")


def _json_object(data: bytes) -> dict[str, Any]:
    """Parses a configuration file. Raises ValueError where it is not a JSON object."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value
