"""Small random LoRA adapters, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict


def save_adapter(pipeline: Any, folder: Path, name: str, seed: int) -> Path:
    """One for a pipeline's transformer, which changes what it draws; the file."""
    transformer = pipeline.transformer
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    transformer.add_adapter(config, adapter_name=name)
    layers = get_peft_model_state_dict(transformer, adapter_name=name)
    layers = {key: 3 * weight for key, weight in layers.items()}
    pipeline.save_lora_weights(
        folder, transformer_lora_layers=layers, weight_name=f"{name}.safetensors"
    )
    transformer.delete_adapters(name)
    return folder / f"{name}.safetensors"
