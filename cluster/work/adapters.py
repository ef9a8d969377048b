"""LoRA adapters: what --lora and the column `lora` name, and where a job keeps their files.

An adapter is a safetensors file, given as a path, an object's uri or a Hugging Face id, and a
scale. A job keeps a copy of each under its root, by the hash of its bytes, from which ranks load
it. What a call runs with is its argument `lora`: ((sha256, scale), ...), left out where there is
none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cluster.models.adapter_names import LORA
from cluster.store import MissingKey, Store, StoreError, TooLarge, is_remote, local_path, read
from cluster.work import values
from cluster.work.values import PromptsError
from meancache.json_values import shown

if TYPE_CHECKING:
    from cluster.work.prompts import Prompt

Given = tuple[tuple[str, float], ...]
"""(address, scale) of each adapter, as it is named."""

KEPT = "adapters/"
MOST = 8
MOST_BYTES = 4 * 2**30
MOST_HEADER = 100_000_000
MOST_SCALE = 100.0
# What diffusers and peft call an adapter's file in a repository or a folder.
USUAL_NAME = "pytorch_lora_weights.safetensors"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SCALED = re.compile(r"(?s)(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")
# Keys of adapters of text encoders, which run in another process than the transformer.
_OF_TEXTS = ("text_encoder", "lora_te", "text_model")


def of_text(text: str, folder: str = "") -> tuple[str, float]:
    """Reads 'PATH_OR_ID' or 'PATH_OR_ID:SCALE'.

    Args:
        text: of a flag or a cell.
        folder: which relative paths begin at, where something is there.

    Raises:
        PromptsError: the scale is none.
    """
    match = _SCALED.fullmatch(text)
    address, scale = (match[1], float(match[2])) if match else (text, 1.0)
    if not -MOST_SCALE <= scale <= MOST_SCALE:
        raise PromptsError(f"lora {shown(text)}: the scale must lie within {MOST_SCALE:g}")
    beside = f"{folder}/{address}"
    elsewhere = is_remote(address) or address.startswith(("/", "~"))
    if folder and not elsewhere and os.path.exists(beside):
        address = beside
    return address, scale


def of_value(value: Any, folder: str) -> Given:
    """The adapters that a cell names: a text, of which ';' stands between several, or a list.

    Raises:
        PromptsError: it names none, or too many.
    """
    several = value if isinstance(value, list) else values.text(LORA, value).split(";")
    named = [values.text(LORA, one).strip() for one in several]
    if len(named) > MOST:
        raise PromptsError(f"lora names {len(named)} adapters, of which {MOST} are the most")
    return tuple(of_text(one, folder) for one in named if one)


class Adapters:
    """The adapters of a job, found and checked.

    Attributes:
        files: sha256 -> where the file is, from this machine.
    """

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self._found: dict[str, str] = {}

    def resolved(self, given: Given) -> tuple[tuple[str, float], ...]:
        """(sha256, scale) of each adapter; those of scale 0 do nothing and are left out.

        Raises:
            PromptsError: one is not there, or no adapter of a transformer.
            StoreError: a store failed.
        """
        return tuple((self._sha256(address), scale) for address, scale in given if scale)

    def keep(self, store: Store) -> None:
        """Copies the files under a root, where they are not there yet."""
        there = set(store.list(KEPT))
        for sha256, file in self.files.items():
            if key_of(sha256) not in there:
                data = read(file, MOST_BYTES)
                if hashlib.sha256(data).hexdigest() != sha256:
                    raise PromptsError(f"lora {shown(file)} was changed meanwhile: run it again")
                store.put_new(key_of(sha256), data)

    def _sha256(self, address: str) -> str:
        if address not in self._found:
            file = _file(address)
            try:
                data = read(file, MOST_BYTES)
            except (MissingKey, TooLarge) as error:
                raise PromptsError(f"lora {shown(address)}: {error}") from None
            _check(address, data)
            self._found[address] = hashlib.sha256(data).hexdigest()
            self.files[self._found[address]] = file
        return self._found[address]


def key_of(sha256: str) -> str:
    """Where a job keeps an adapter's file: made of hex digits alone."""
    return f"{KEPT}{sha256[:2]}/{sha256}.safetensors"


def fetched(store: Store, sha256: str) -> bytes:
    """An adapter's file, as the root keeps it. Raises StoreError where it is damaged."""
    data = store.get(key_of(sha256))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise StoreError(f"{store.uri(key_of(sha256))} is damaged: it has another sha256")
    return data


def resolve_rows(prompts: list[Prompt], found: Adapters) -> None:
    """Puts (sha256, scale) in the place of addresses in what rows override, in place.

    Raises:
        PromptsError: with the line of the row.
        StoreError: a store failed.
    """
    for place, row in enumerate(prompts):
        given = row.overrides.get(LORA)
        if given is None:
            continue
        try:
            own: Mapping[str, Any] = {**row.overrides, LORA: found.resolved(given)}
        except PromptsError as error:
            raise PromptsError(f"line {row.line}: {error}") from None
        prompts[place] = replace(row, overrides=own)


def grouped(
    items: Sequence[Any], alike: Callable[[Any], Hashable] = lambda item: (), shards: int = 1
) -> list[Any]:
    """Items with those of the same adapters side by side, and of these those that are alike.

    A shard at a time; every other shard has them the other way round, so that it begins with those
    that the one before ended with.

    Args:
        items: in their order.
        alike: what items have in common that go into one forward; orderable.
        shards: so many are taken as one.
    """

    def key(item: Any) -> Any:
        return repr(item.arguments.get(LORA, ())), alike(item)

    if len({key(item) for item in items}) < 2:
        return list(items)
    parts: dict[int, list[Any]] = {}
    for item in items:
        parts.setdefault(item.shard // shards, []).append(item)
    ordered: list[Any] = []
    for number, members in enumerate(parts.values()):
        ordered += sorted(members, key=key, reverse=bool(number % 2))
    return ordered


def _file(address: str) -> str:
    """Where an adapter's file is: a path or a bucket's uri. Raises PromptsError."""
    if is_remote(address):
        return address
    try:
        path = local_path(address)
    except StoreError as error:
        raise PromptsError(f"lora {shown(address)}: {error}") from None
    if os.path.isdir(path):
        return str(_only(address, {one.name: str(one) for one in path.glob("*.safetensors")}))
    if os.path.exists(path) or not _HUB_ID.fullmatch(address):
        if path.suffix not in ("", ".safetensors"):
            raise PromptsError(
                f"lora {shown(address)}: only .safetensors files are read, since others may run "
                "code: convert it"
            )
        return str(path)
    return _from_hub(address)


def _from_hub(repository: str) -> str:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        names = HfApi().list_repo_files(repository)
        name = _only(repository, {one: one for one in names if one.endswith(".safetensors")})
        return str(hf_hub_download(repository, name))
    except (HfHubHTTPError, OSError, ValueError) as error:
        if isinstance(error, PromptsError):
            raise
        raise PromptsError(
            f"lora {shown(repository)} is neither a file here nor to be had from the Hub "
            f"({type(error).__name__}): check the name, or give a path"
        ) from None


def _only(address: str, files: Mapping[str, str]) -> str:
    """The one file of several, or the one that has the usual name. Raises PromptsError."""
    if USUAL_NAME in files:
        return files[USUAL_NAME]
    if len(files) != 1:
        raise PromptsError(
            f"lora {shown(address)} holds {len(files)} .safetensors files and none is called "
            f"{USUAL_NAME}: name the file"
        )
    return next(iter(files.values()))


def _check(address: str, data: bytes) -> None:
    """Refuses what is no adapter of a transformer, by the names of its tensors."""
    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or not 2 <= length <= min(MOST_HEADER, len(data) - 8):
            raise ValueError
        header = json.loads(data[8 : 8 + length])
        names = [name for name in header if name != "__metadata__"]
    except (ValueError, TypeError, RecursionError):
        raise PromptsError(
            f"lora {shown(address)} is no whole safetensors file: download it again, or convert it"
        ) from None
    if not any("lora" in name.lower() for name in names):
        raise PromptsError(
            f"lora {shown(address)} holds {len(names)} tensors, and none is a LoRA's: give the "
            "file of an adapter"
        )
    texts = _texts(names)
    if texts:
        raise PromptsError(
            f"lora {shown(address)} changes text encoders too ({shown(texts)}), which is not "
            "supported: give an adapter of the transformer alone"
        )


def _texts(names: Iterable[str]) -> str | None:
    return next((name for name in names if name.startswith(_OF_TEXTS)), None)
