"""Causal models that tests make up: random weights, and a tokenizer that knows some whole words."""

from string import ascii_letters

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

PASSAGES = [
    "masks filter droplets",
    "zinc",
    "bats carry many coronaviruses\nand do not fall ill\r\n\n from them as others do",
    "sunlight makes vitamin d in the skin of some",
    "two doses protect better than one",
    "",
]
TOPICS = ["masks", "sunlight", "viruses", "hands", "bats", "zinc", "lungs", "soap"]
SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = {**SHAPE, "num_key_value_heads": 2, "head_dim": 8}
WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
CAUSAL = {  # configuration and shape
    "gemma3": (
        hf.Gemma3TextConfig,
        {**GROUPED, **WINDOW, "query_pre_attn_scalar": 8, "tie_word_embeddings": False},
    ),
    "qwen3": (hf.Qwen3Config, GROUPED),
    "llama": (hf.LlamaConfig, GROUPED),
    "gpt2": (hf.GPT2Config, {"n_layer": 2, "n_embd": 32, "n_head": 2}),
}


def make_tokenizer(begins):
    """Bytes and some words; one token in ten ends a line, mostly with a letter before it.

    Args:
        begins: Whether each text begins with a token for that, as with Gemma.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*PASSAGES, *TOPICS]
    tokenizer.train_from_iterator([f" {' '.join(text.split())}" for text in texts] * 9, trainer)
    tokenizer.add_tokens([f"{letter}\n" for letter in ascii_letters[:40]])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 2)]
        )
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def save_causal(folder, kind, spread=0.5, positions=2_048):
    """Write a causal model with a tokenizer as a plain transformers checkpoint.

    Args:
        folder: The folder.
        kind: A key of `CAUSAL`.
        spread: Standard deviation of the weights; 0.5 makes every token and place matter.
        positions: How many it has.
    """
    made, shape = CAUSAL[kind]
    tokenizer = make_tokenizer(kind in ("gemma3", "llama"))
    named = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = made(**named, **shape, max_position_embeddings=positions, initializer_range=spread)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
