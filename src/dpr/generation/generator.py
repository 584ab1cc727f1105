"""A query generator: a sequence-to-sequence transformer that reads a passage and writes queries for it.

Passages of similar length share a batch, and on a CPU each core computes whole batches. Each batch has its
own random state for sampling, so the queries depend only on the block of passages and the seed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EncoderDecoderModel,
    LogitsProcessorList,
)
from transformers.modeling_outputs import BaseModelOutput

from dpr.arguments import check_fields_of, checked
from dpr.generation.decoding import Decoding, Drawing, Drawn
from dpr.generation.llm import CausalGenerator, is_causal
from dpr.generation.saved import load_parts, merged_settings, save_generator
from dpr.generation.writer import ModelWriter, Query
from dpr.models.batching import MIN_LENGTH, pad_batch, padding_id, tokenize
from dpr.models.bi_encoder import PRECISIONS
from dpr.models.checkpoint import (
    check_weights,
    find_checkpoint,
    max_tokens,
    naming_damage,
    quieten,
    refuse_custom_code,
    weights_fingerprint,
)

WARM_STARTS = ("bert", "roberta", "xlm-roberta")  # architectures that can become an encoder-decoder


@dataclass(frozen=True)
class GeneratorConfig:
    """The lengths and the prompt of a generator, saved with its weights.

    Args:
        passage_max_length: Passages are cut to this many tokens, special tokens included.
        query_max_length: Queries are cut to this many tokens in training, the end token included.
        prompt: Text put before every passage.

    Raises:
        ValueError: A length too short for any text.
    """

    passage_max_length: int
    query_max_length: int
    prompt: str = ""

    def __post_init__(self):
        check_fields_of(self)
        for field in ("passage_max_length", "query_max_length"):
            if getattr(self, field) < MIN_LENGTH:
                raise ValueError(f"{field} must be at least {MIN_LENGTH} tokens, got {getattr(self, field)}")


class QueryGenerator(ModelWriter):
    """Writes queries that a passage may answer.

    Make one with `from_pretrained` or `warm_started`.

    Args:
        model: A transformers sequence-to-sequence model, in float32.
        tokenizer: The model's tokenizer.
        name: The checkpoint's name.
        config: Its lengths and prompt.
        precision: The precision in which queries are written: a key of `PRECISIONS`.

    Raises:
        ValueError: An unknown precision, or passages longer than the model can read.
    """

    BATCH_TOKENS = (2_048, 131_072)

    def __init__(self, model, tokenizer, name: str, config: GeneratorConfig, precision: str = "float32"):
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        tokenizer.padding_side = "right"
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.config, self.precision = config, precision
        longest = max_tokens(model.get_encoder())
        if config.passage_max_length > longest:
            raise ValueError(
                f"{name} reads at most {longest} tokens, asked for passages of {config.passage_max_length}"
            )

    @classmethod
    @checked
    def from_pretrained(
        cls, name_or_folder: str | Path, device: str | None = None, precision: str | None = None, **settings
    ) -> "QueryGenerator | CausalGenerator":
        """Load a T5-like or causal checkpoint, or a folder that `save` wrote.

        Args:
            name_or_folder: A hub name, such as `castorini/doc2query-t5-base-msmarco`, or a folder.
            device: `cuda`, `cpu`, …; by default a GPU if there is one.
            precision: Precision of writing; by default float32 on a CPU and bfloat16 elsewhere. The weights
                stay in float32.
            **settings: Fields of `GeneratorConfig`, which replace the saved ones; a checkpoint that
                `save` did not write needs both lengths.

        Returns:
            The generator; for a causal model what `CausalGenerator.from_pretrained` makes of the same
            arguments, which says what they mean to it.

        Raises:
            ValueError: A setting is missing, unknown or out of range; the checkpoint is code of its own,
                lacks weights, or writes no texts.
            FileNotFoundError: The folder does not exist.
        """
        quieten()
        path = find_checkpoint(name_or_folder)
        refuse_custom_code(path)
        with naming_damage(path):
            known_as = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if is_causal(known_as):
            return CausalGenerator.from_pretrained(name_or_folder, device, precision, **settings)
        merged = merged_settings(path, GeneratorConfig, settings)
        lengths = ("passage_max_length", "query_max_length")
        missing = [field for field in lengths if field not in merged]
        if missing:
            raise ValueError(f"{path} does not say its {', '.join(missing)}; pass {missing[0]}=…")
        if type(known_as) not in AutoModelForSeq2SeqLM._model_mapping:
            raise ValueError(
                f"{path}: {known_as.model_type} is neither a sequence-to-sequence model, as T5 is, nor a "
                f"causal one, as Gemma is"
            )
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, tokenizer = load_parts(path, AutoModelForSeq2SeqLM, torch.float32)
        model = model.to(device)
        precision = precision or ("float32" if device == "cpu" else "bfloat16")
        name = str(name_or_folder).rstrip("/").split("/")[-1]
        return cls(model, tokenizer, name, GeneratorConfig(**merged), precision)

    @classmethod
    @checked
    def warm_started(
        cls,
        name_or_folder: str | Path,
        num_decoder_layers: int,
        device: str | None = None,
        **settings,
    ) -> "QueryGenerator":
        """An untrained encoder-decoder with the weights of an encoder on both sides.

        Only the decoder's attention to the passage is new. It starts as the mean of the passage's tokens,
        which is what a bi-encoder searches with, so the passage matters from the first step. With random
        weights a decoder memorises the queries before it uses the passage.

        Args:
            name_or_folder: The encoder, as `find_checkpoint` takes it.
            num_decoder_layers: Number of layers of the decoder, which are the first ones of the encoder.
            device: As in `from_pretrained`.
            **settings: Fields of `GeneratorConfig`.

        Raises:
            ValueError: The encoder is none of `WARM_STARTS` or lacks weights, or its tokenizer has no token
                to begin and to end a text with.

        Source: Rothe, Narayan and Severyn 2020, Leveraging pre-trained checkpoints for sequence generation.
        """
        quieten()
        path = find_checkpoint(name_or_folder)
        refuse_custom_code(path)
        kind = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
        if kind not in WARM_STARTS:
            raise ValueError(f"{path}: a warm start needs one of {', '.join(WARM_STARTS)}, got {kind}")
        encoder, found = AutoModel.from_pretrained(path, device_map="meta", output_loading_info=True)
        parts = [name for name, _ in encoder.named_children()]
        check_weights(path, found["missing_keys"], found["unexpected_keys"], parts)
        model = EncoderDecoderModel.from_encoder_decoder_pretrained(
            path, path, decoder_num_hidden_layers=num_decoder_layers
        )
        _attend_as_mean(model.decoder)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if None in (tokenizer.cls_token_id, tokenizer.sep_token_id):
            raise ValueError(f"{path}: its tokenizer has no token that begins and none that ends a text")
        for config in (model.config, model.generation_config):
            config.decoder_start_token_id = tokenizer.cls_token_id
            config.eos_token_id = tokenizer.sep_token_id
            config.pad_token_id = padding_id(tokenizer)
        model.config.vocab_size = model.config.decoder.vocab_size
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        name = f"{str(name_or_folder).rstrip('/').split('/')[-1]}-writer"
        return cls(model.float().to(device), tokenizer, name, GeneratorConfig(**settings))

    @property
    def fingerprint(self) -> str:
        """A hash of the settings and weights, 16 hex digits."""
        return weights_fingerprint(self.model, asdict(self.config))

    def _prepare(self, decoding: Decoding) -> None:
        longest = max_tokens(getattr(self.model, "decoder", self.model).base_model)
        if decoding.max_length > longest:
            raise ValueError(
                f"{self.name} writes at most {longest} tokens, asked for {decoding.max_length} (max_length)"
            )

    def _tokens_beside(self, decoding: Decoding) -> int:
        beams = decoding.num_beams if decoding.method == "beam" else decoding.num_queries
        return beams * decoding.max_length

    def _rows(self, texts: Sequence[str], overflow: str) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
        config = self.config
        return tokenize(self.tokenizer, texts, config.prompt, config.passage_max_length, overflow)

    @torch.inference_mode()
    def _write(self, rows: list[dict], decoding: Decoding, seed: list[int]) -> list[list[Query]]:
        device, dtype = self.model.device, PRECISIONS[self.precision]
        fields = {name: tensor.to(device) for name, tensor in self.pad(rows).items()}
        how = {"do_sample": False, "max_new_tokens": decoding.max_length, "num_beams": 1}
        how["repetition_penalty"] = decoding.repetition_penalty
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if decoding.method == "beam":
                how |= {"num_beams": decoding.num_beams, "num_return_sequences": decoding.num_queries}
            elif decoding.method == "sample":
                hidden = self.model.get_encoder()(**fields).last_hidden_state  # one pass for all queries
                mask = fields["attention_mask"].repeat_interleave(decoding.num_queries, dim=0)
                read = BaseModelOutput(hidden.repeat_interleave(decoding.num_queries, dim=0))
                fields = {"encoder_outputs": read, "attention_mask": mask}
                how["logits_processor"] = LogitsProcessorList([Drawn(Drawing(decoding, seed, device))])
                how["repetition_penalty"] = 1.0  # `Drawing` applies it
            ids = self.model.generate(**fields, **how)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        queries, count = [Query(" ".join(text.split())) for text in texts], decoding.num_queries
        return [queries[i : i + count] for i in range(0, len(queries), count)]

    def pad(self, rows: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Pad B tokenised passages to a batch of `input_ids` and `attention_mask`, int64 [B, T]."""
        rows = [{field: row[field] for field in ("input_ids", "attention_mask")} for row in rows]
        multiple = 1 if self.model.device.type == "cpu" else 8
        return pad_batch(rows, {"input_ids": padding_id(self.tokenizer)}, multiple)

    @checked
    def save(self, folder: Path | str) -> None:
        """Write a transformers folder that also has the generator's settings, atomically.

        Raises:
            ValueError: `folder` exists and holds something other than a generator.
        """
        save_generator(folder, self.model, self.tokenizer, self.config)


@torch.no_grad()
def _attend_as_mean(decoder: torch.nn.Module) -> None:
    """Make a decoder's attention pass on the mean of the passage, and its head pass on its input."""
    for layer in decoder.base_model.encoder.layer:
        new = layer.crossattention
        new.load_state_dict({**new.state_dict(), **layer.attention.state_dict()})  # only the keys are kept
        for zero in (new.self.query.weight, new.self.query.bias, new.self.value.bias, new.output.dense.bias):
            zero.zero_()
        for same in (new.self.value.weight, new.output.dense.weight):
            torch.nn.init.eye_(same)
        new.output.LayerNorm.reset_parameters()
    bert = hasattr(decoder, "cls")
    torch.nn.init.eye_(
        decoder.cls.predictions.transform.dense.weight if bert else decoder.lm_head.dense.weight
    )
