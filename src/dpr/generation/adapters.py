"""Low-rank adapters: small matrices that are trained in place of a model's weights, then added to them."""

import torch


def add_adapters(model: torch.nn.Module, rank: int, seed: int) -> None:
    """Freeze a model, and put an adapter on each linear layer but the output layer; nothing changes yet.

    A layer with weights W [O, I] then computes with W + 2 B A. A [rank, I] is random and B [O, rank] is 0.

    Args:
        model: A transformers model, changed in place.
        rank: Rows of A and columns of B.
        seed: Seed of A.

    Source: Hu et al. 2021, LoRA: low-rank adaptation of large language models; the factor 2, usual in
    practice, is `lora_alpha` / `r` of peft.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", fan_in_fan_out=transposed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


def merge_adapters(model: torch.nn.Module) -> None:
    """Add all adapters to the weights, so that the model is again what it was before `add_adapters`.

    Args:
        model: A model with adapters or without, changed in place.
    """
    from peft.tuners.lora import LoraLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
