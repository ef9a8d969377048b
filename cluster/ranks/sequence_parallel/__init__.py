"""xDiT set-up for one rank, on CUDA (NCCL) and on CPU (gloo), by the same code.

A gang's ranks share one video by sequence parallelism: each holds the whole transformer and a
slice of the tokens, and Ulysses exchanges heads for tokens around every attention; ranks that heads
do not suffice for pass keys and values around a ring. xDiT is made for accelerators; what it lacks
on a CPU is supplied here and nowhere else. Knows nothing of schedules: a schedule is static, so
ranks need no agreement about it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from accelerate import init_empty_weights

from cluster.ranks.sequence_parallel import texts, videos

TRANSFORMERS = "xfuser.model_executor.models.transformers"
KERNELS = "xfuser.core.sparge_attention.block_mask"
# A collective that waits longer than this has lost a rank.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


def initialize(rank: int, world_size: int, init_method: str) -> torch.device:
    """Joins this process to the ranks of its gang, and returns the rank's device.

    Once is enough, however many pipelines the rank holds.

    Args:
        rank: 0 .. world_size - 1; also the index of the GPU among those the process sees.
        world_size: ranks in the gang.
        init_method: rendezvous for torch.distributed, 'file:///...' or 'env://'.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    elif world_size > 1:
        # The ranks of a CPU gang share one machine; a look-up of its name may lead elsewhere.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if torch.distributed.is_initialized():
        return device
    # Before xDiT does it itself: xDiT would keep torch's default timeout.
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=init_method,
        rank=rank,
        world_size=world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    return device


def parallelise(pipeline: Any, module: str, name: str, ulysses: int, ring: int) -> str:
    """Replaces a pipeline's transformers by xDiT's sequence-parallel ones, in place.

    Call it after `initialize`, on every rank. Outputs equal the plain transformer's up to the
    order of float additions in attention.

    Args:
        pipeline: on the rank's device.
        module: of xDiT's transformers.
        name: of the class in there that takes the place of the pipeline's own.
        ulysses: ranks that exchange heads for tokens; divides the heads.
        ring: such groups, which pass keys and values around. Ulysses times ring is the world size.

    Returns:
        The name of xDiT's attention that was chosen.

    Raises:
        ValueError: see `attention_backend`.
    """
    xfuser = _import_xfuser()
    from xfuser.core.distributed import (
        get_runtime_state,
        init_distributed_environment,
        initialize_model_parallel,
        initialize_runtime_state,
        model_parallel_is_initialized,
    )

    world_size = torch.distributed.get_world_size()
    rank = torch.distributed.get_rank()
    backend = torch.distributed.get_backend()
    init_distributed_environment(world_size, rank, local_rank=rank, backend=backend)
    if not model_parallel_is_initialized():
        initialize_model_parallel(
            sequence_parallel_degree=world_size,
            ulysses_degree=ulysses,
            ring_degree=ring,
            backend=backend,
        )
    engine_config, _ = xfuser.xFuserArgs(
        ulysses_degree=ulysses,
        ring_degree=ring,
        attention_backend=attention_backend(backend, ring, pipeline.dtype),
    ).create_config()
    if ring > 1:
        _pass_keys_around()
    wrapper = getattr(importlib.import_module(f"{TRANSFORMERS}.{module}"), name)
    for component, plain in pipeline.components.items():
        if component.startswith("transformer") and plain is not None:
            setattr(pipeline, component, _parallel(wrapper, plain))
    initialize_runtime_state(pipeline, engine_config)
    if module == "transformer_qwen":
        texts.install()
    elif module == "transformer_hunyuan_video" and ring == 1:
        videos.install(pipeline.transformer, world_size)
    elif module == "transformer_ltx2":
        _forget_masks(pipeline.transformer)
    # FLUX.1's attention reads it, and needs it for xDiT's pipeline parallelism alone.
    get_runtime_state().max_condition_sequence_length = 0
    return str(get_runtime_state().attention_backend.name).lower()


def _forget_masks(transformer: Any) -> None:
    """Empties the mask cache of xDiT's LTX-2 transformer before each forward: its keys are
    addresses, and the next text's mask may lie where the last one's did."""

    def forget(module: Any, _: Any) -> None:
        module._enc_mask_cache.clear()
        module._audio_enc_mask_cache.clear()

    transformer.register_forward_pre_hook(forget)


def _pass_keys_around() -> None:
    """In a ring; torch's default would gather all keys and values on every rank."""
    from torch.distributed.tensor.experimental._attention import set_rotate_method

    set_rotate_method("alltoall")


def attention_backend(backend: str, ring: int, dtype: torch.dtype) -> str | None:
    """Which of xDiT's attentions; None for the fastest that it finds.

    The fastest ones of a GPU know half precision alone, and xDiT does not ask. A ring adds up by
    the log-sum-exp of each part, which not all of them tell.

    Args:
        backend: of torch.distributed, 'nccl' or 'gloo'.
        ring: its degree.
        dtype: of the transformer.

    Raises:
        ValueError: there is none.
    """
    if backend == "gloo":
        return "sdpa" if ring == 1 else "sdpa_flash"
    if dtype == torch.float32 and ring > 1:
        raise ValueError(
            "a ring of GPUs cannot attend in float32: use --dtype bfloat16, or a --gang-size that "
            "divides the attention heads"
        )
    if dtype == torch.float32:
        return "sdpa"
    return None if ring == 1 else "cudnn"


def _flash_attention_of_a_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float,
    is_causal: bool,
    attention_kwargs: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `sdpa_flash` is on an accelerator: (result, log-sum-exp of the scores)."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    result, log_sum_exp = flash(query, key, value, dropout_p=dropout_p, is_causal=is_causal)
    return result, log_sum_exp


def _parallel(wrapper: Any, plain: Any) -> Any:
    """xDiT's transformer with the weights of diffusers' own."""
    # Weights alone stay empty: tables of positions are computed, and are in no state_dict.
    with init_empty_weights(include_buffers=False):
        parallel = wrapper.from_config(plain.config)
    parallel.load_state_dict(plain.state_dict(), assign=True)
    parallel = parallel.to(plain.device)
    return parallel.eval().requires_grad_(False)


def _import_xfuser() -> Any:
    """xfuser, also on a machine without an accelerator, where its import would fail."""
    # Every rank would repeat what xDiT says about itself while it loads.
    os.environ.setdefault("XDIT_LOGGING_LEVEL", "ERROR")
    if torch.cuda.is_available() or "xfuser" in sys.modules:
        return importlib.import_module("xfuser")
    # Its package imports everything at once, and everything asks `envs` for an accelerator: so
    # register the package unexecuted, answer for the CPU in `envs`, and only then execute it.
    spec = importlib.util.find_spec("xfuser")
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["xfuser"] = package
    envs: Any = importlib.import_module("xfuser.envs")
    envs.get_device_version = lambda: None
    envs.get_torch_distributed_backend = lambda: "gloo"
    # yunchang's process groups do work over gloo; xfuser looks for them on accelerators only.
    envs.PACKAGES_CHECKER.packages_info["has_long_ctx_attn"] = True
    # Kernels for GPUs alone, in Triton, which takes a gigabyte and comes with torch for CUDA only.
    kernels: Any = types.ModuleType(KERNELS)
    kernels.get_block_map_meansim = None
    sys.modules[KERNELS] = kernels
    spec.loader.exec_module(package)
    usp: Any = importlib.import_module("xfuser.model_executor.layers.usp")
    usp.PROCESS_GROUP = importlib.import_module("yunchang.globals").PROCESS_GROUP
    attention: Any = importlib.import_module("xfuser.core.distributed.attention_backend")
    flash = attention.AttentionBackendType.SDPA_FLASH
    attention.ATTENTION_FUNCTION_REGISTRY[flash] = _flash_attention_of_a_cpu
    return package
