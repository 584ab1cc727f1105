"""Checkpoints that tests make up: tiny models with random weights, and tokenizers of every make."""

import json
from functools import cache
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

LINE = "masks filter droplets and vaccines protect the lungs of bats while zinc shortens a cold"
WORDS = LINE.split()
MARKS = ["<pad>", "<unk>", "<s>", "</s>"]  # the tokens 0 to 3
NAMES = {"unk_token": "<unk>", "pad_token": "<pad>"}
FRAMES = {  # the marks before and after a text, each with its segment
    "word pieces": ([(2, 0)], [(3, 0)]),
    "bytes": ([(2, 0)], [(3, 0)]),
    "bytes, a space first": ([(2, 0)], [(3, 0)]),
    "pieces with spaces": ([], [(3, 0)]),
    "no marks, no padding": ([], []),
    "marks at the end": ([], [(3, 0), (2, 2)]),
    "bytes in Python": ([], [(1, 0)]),
    "characters in Python": ([(0xE000, 0)], [(0xE001, 0)]),
}
SHAPE = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
BART_SHAPE = {
    **{
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 32))
    },
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16},
}
T5_SHAPE = {"num_layers": 2, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
T5_MARKS = {"decoder_start_token_id": 0, "eos_token_id": 3}
GPT2_SHAPE = {"n_layer": 2, "n_embd": 16, "n_head": 2}
ARCHITECTURES = {  # class, tokenizer, shape
    "albert": ("AlbertModel", "word pieces", {**SHAPE, "embedding_size": 8}),
    "bart": ("BartModel", "bytes", BART_SHAPE),
    "bert": ("BertModel", "word pieces", SHAPE),
    "deberta-v2": ("DebertaV2Model", "pieces with spaces", SHAPE),
    "distilbert": (
        "DistilBertModel",
        "word pieces",
        {"n_layers": 2, "dim": 16, "n_heads": 2, "hidden_dim": 32},
    ),
    "electra": ("ElectraModel", "word pieces", {**SHAPE, "embedding_size": 8}),
    "gpt2": ("GPT2Model", "bytes", GPT2_SHAPE),
    "modernbert": ("ModernBertModel", "bytes", SHAPE),
    "mpnet": ("MPNetModel", "word pieces", SHAPE),
    "qwen3": ("Qwen3Model", "bytes", {**SHAPE, "head_dim": 8, "num_key_value_heads": 1}),
    "roberta": ("RobertaModel", "bytes, a space first", SHAPE),
    "t5 encoder": ("T5EncoderModel", "pieces with spaces", T5_SHAPE),
    "t5": ("T5ForConditionalGeneration", "pieces with spaces", {**T5_SHAPE, **T5_MARKS}),
    "xlm-roberta": ("XLMRobertaModel", "pieces with spaces", SHAPE),
    "xlnet": ("XLNetModel", "marks at the end", {"n_layer": 2, "d_model": 16, "n_head": 2, "d_inner": 32}),
}


@cache
def make_tokenizer(kind):
    """A tokenizer that knows whole words of `LINE`, and pieces of all others; `FRAMES` has its marks."""
    if "in Python" in kind:
        return hf.ByT5Tokenizer() if kind.startswith("bytes") else hf.CanineTokenizer()
    letters = sorted({chr(i) for i in range(33, 127)})
    if kind in ("word pieces", "marks at the end"):
        pieces = [*MARKS, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
        tokenizer = Tokenizer(
            models.WordPiece({piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, unk_token="<unk>")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        tokenizer, known = Tokenizer(models.BPE(unk_token="<unk>")), letters
        if kind == "pieces with spaces":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        else:
            space = kind == "bytes, a space first"
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
            known = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=MARKS, initial_alphabet=known, show_progress=False
        )
        tokenizer.train_from_iterator([f"passage: {LINE}"] * 9, trainer)
    before, after = FRAMES[kind]
    if before or after:
        of = [f"{MARKS[token]}:{segment}" for token, segment in before]
        of += ["$A:0", *(f"{MARKS[token]}:{segment}" for token, segment in after)]
        marks = [(mark, i) for i, mark in enumerate(MARKS)]
        tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(of), special_tokens=marks)
        named = {**NAMES, "cls_token": "<s>", "sep_token": "</s>", "eos_token": "</s>"}
        fields = ["input_ids", "attention_mask", "token_type_ids"]
        return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=fields, **named)
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def make_model(architecture, positions=64, kind=None, head=None, **changed):
    """A model with random weights, large enough that every token and place matters; from a fixed seed.

    Args:
        architecture: A key of `ARCHITECTURES`.
        positions: How many it has; for models that have a table of them.
        kind: The tokenizer; by default the architecture's own.
        head: Another class of the same architecture.
        **changed: Fields of its configuration.
    """
    name, own, shape = ARCHITECTURES[architecture]
    made = getattr(hf, head or name)
    shape = {"vocab_size": len(make_tokenizer(kind or own)), "pad_token_id": 0, **shape, **changed}
    if architecture == "gpt2":
        shape["n_positions"] = positions
    elif architecture not in ("xlnet", "t5", "t5 encoder"):
        shape["max_position_embeddings"] = positions
    config = made.config_class(**shape)
    for field in ("initializer_range", "init_std"):
        if hasattr(config, field):
            setattr(config, field, 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return made(config).eval()


def save_checkpoint(folder, architecture, kind=None, **how) -> Path:
    """Write such a model with a tokenizer as a plain transformers checkpoint; both come back."""
    model = make_model(architecture, kind=kind, **how)
    model.save_pretrained(folder)
    make_tokenizer(kind or ARCHITECTURES[architecture][1]).save_pretrained(folder)
    return model


def save_parts(folder, plain, pooling="mean", max_length=16, **settings) -> Path:
    """Write a plain checkpoint again as a sentence-transformers folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    parts = [Transformer(str(plain), max_seq_length=max_length), Pooling(16, pooling)]
    SentenceTransformer(modules=parts, device="cpu", **settings).save(str(folder), create_model_card=False)
    return Path(folder)


def chunks_by_hand(kind, text, prompt, max_length) -> list[dict[str, list[int]]]:
    """What each chunk of a text should be: the prompt's tokens and the next of the text's, in their frame."""
    tokenizer, (before, after) = make_tokenizer(kind), FRAMES[kind]
    tokens = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    while tokens[: len(prompt_ids)] != prompt_ids:  # its end has become part of the first word
        prompt_ids = prompt_ids[:-1]
    rest = tokens[len(prompt_ids) :]
    room = max_length - len(before) - len(prompt_ids) - len(after)
    rows = []
    for start in range(0, max(1, len(rest)), room):
        body = [*prompt_ids, *rest[start : start + room]]
        marked = [*before, *((token, 0) for token in body), *after]
        rows.append(
            {
                "input_ids": [token for token, _ in marked],
                "attention_mask": [1] * len(marked),
                "token_type_ids": [segment for _, segment in marked],
            }
        )
    return rows


def change_weights(folder, change):
    """Write a checkpoint's weights again, as `change` turns the dict of them into another."""
    file = Path(folder) / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def change_json(file, **changed):
    """Write a file again with other or more fields."""
    about = json.loads(Path(file).read_text()) if Path(file).is_file() else {}
    Path(file).write_text(json.dumps({**about, **changed}))
