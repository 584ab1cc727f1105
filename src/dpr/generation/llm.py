"""Queries by a language model that was never trained for it: it goes on with a few examples.

The examples are read once. Each passage is read once after them, whatever the number of its queries, and
a batch goes on without the passages whose queries are complete.

Source: Bonifacio et al. 2022, InPars: data augmentation for information retrieval using LLMs.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DynamicCache,
    PretrainedConfig,
)

from dpr.arguments import check_fields_of, checked
from dpr.generation.decoding import Decoding, Drawing
from dpr.generation.saved import load_parts, merged_settings, save_generator
from dpr.generation.shared_attention import NAME, ReadTexts
from dpr.generation.writer import ModelWriter, Query
from dpr.models.batching import pad_batch, padding_id, tokenize
from dpr.models.bi_encoder import PRECISIONS, fast_precision
from dpr.models.checkpoint import (
    find_checkpoint,
    max_tokens,
    naming_damage,
    quieten,
    refuse_custom_code,
    weights_fingerprint,
)

LINE_END = re.compile(r"[\r\n]")


@dataclass(frozen=True)
class Prompt:
    """What a language model reads before and after each passage.

    Args:
        before: Text before the passage, examples included. It is read once for all passages.
        after: Text between the passage and the query.

    Raises:
        ValueError: `before` is empty.
    """

    before: str
    after: str

    def __post_init__(self):
        check_fields_of(self)
        if not self.before:
            raise ValueError("the text before the passage (before) must not be empty")


EXAMPLES = (  # passage, good question, bad question; written for this project
    (
        "Bees that forage near treated fields bring home traces of insecticide. Hives within a kilometre of "
        "such fields lost a third of their workers over one summer, those further away a tenth.",
        "do insecticides on fields make bee colonies smaller",
        "what are bees",
    ),
    (
        "Adding fly ash to concrete slows its hardening, but after ninety days the mixture bears more load "
        "than plain concrete and lets less water through.",
        "effect of fly ash on the long-term strength of concrete",
        "how is concrete made in ninety days",
    ),
    (
        "Children who were read to every evening knew more words at school entry, whatever their parents "
        "earned. The effect was largest where few books were at home.",
        "does reading aloud to children improve their vocabulary",
        "which books did the children own",
    ),
)


def _examples(form: str) -> Prompt:
    """The examples in a form, and then the beginning of a fourth one."""
    shown = "".join(
        f"Example {n}:\n{form.format(*example)}\n\n" for n, example in enumerate(EXAMPLES, start=1)
    )
    label, after = form.split("{0}")
    return Prompt(f"{shown}Example {len(EXAMPLES) + 1}:\n{label.rstrip()}", after.split("{1}")[0].rstrip())


PROMPTS = {
    "examples": _examples("Document: {0}\nRelevant Query: {1}"),
    "good-bad": _examples("Document: {0}\nGood Question: {1}\nBad Question: {2}"),
    "none": Prompt("Document:", "\nQuery:"),  # for a model that was trained to write
}


@dataclass(frozen=True)
class CausalConfig:
    """The lengths and the prompt of a causal writer, saved with its weights.

    Args:
        passage_max_length: Passages are cut to this many tokens; the prompt comes on top.
        query_max_length: Queries are cut to this many tokens in training.
        prompt: A key of `PROMPTS`.

    Raises:
        ValueError: A length below 1, or an unknown prompt.
    """

    passage_max_length: int = 256
    query_max_length: int = 32
    prompt: str = "examples"

    def __post_init__(self):
        check_fields_of(self)
        for field in ("passage_max_length", "query_max_length"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1 token, got {getattr(self, field)}")
        if self.prompt not in PROMPTS:
            raise ValueError(f"prompt must be one of {', '.join(PROMPTS)}, got {self.prompt!r}")


def is_causal(config: PretrainedConfig) -> bool:
    """Whether a model with this configuration was trained to continue texts.

    transformers can also load an encoder, such as BERT, as one that was not.
    """
    fills_gaps = type(config) in AutoModelForMaskedLM._model_mapping and not getattr(
        config, "is_decoder", False
    )
    other = fills_gaps or config.is_encoder_decoder
    return type(config) in AutoModelForCausalLM._model_mapping and not other


class CausalGenerator(ModelWriter):
    """Writes queries with a causal language model, from a prompt with or without examples.

    Make one with `from_pretrained`. A query ends with the line.

    Args:
        model: A transformers causal language model.
        tokenizer: The model's tokenizer.
        name: The checkpoint's name.
        config: Its lengths and prompt.

    Raises:
        ValueError: The model's attention cannot be exchanged, or prompt, passage and query are longer than
            it can read.
    """

    BATCH_TOKENS = (8_192, 131_072)

    def __init__(self, model, tokenizer, name: str, config: CausalConfig):
        self.model, self.tokenizer, self.name, self.config = model, tokenizer, name, config
        self.precision = next(n for n, dtype in PRECISIONS.items() if dtype == model.dtype)
        model.set_attn_implementation(NAME)
        prompt = PROMPTS[config.prompt]
        self._before = tokenizer(prompt.before)["input_ids"]
        self._after = tokenizer(prompt.after, add_special_tokens=False)["input_ids"]
        self._check_length(config.query_max_length)

    def _check_length(self, query_length: int) -> None:
        longest = max_tokens(self.model)
        total = len(self._before) + self.config.passage_max_length + len(self._after) + query_length
        if total > longest:
            raise ValueError(
                f"{self.name} reads at most {longest} tokens; prompt, passage and query are {total}"
            )

    @classmethod
    @checked
    def from_pretrained(
        cls, name_or_folder: str | Path, device: str | None = None, precision: str | None = None, **settings
    ) -> "CausalGenerator":
        """Load a causal checkpoint, or a folder that `save` wrote.

        Args:
            name_or_folder: A hub name, such as `google/gemma-3-270m`, or a folder.
            device: `cuda`, `cpu`, …; by default a GPU if there is one.
            precision: A key of `PRECISIONS`; by default bfloat16 where the hardware computes with it, else
                float32.
            **settings: Fields of `CausalConfig`, which replace the saved ones.

        Raises:
            ValueError: A setting is unknown or out of range; the checkpoint is code of its own, lacks
                weights, or is no causal model.
            FileNotFoundError: The folder does not exist.
        """
        quieten()
        path = find_checkpoint(name_or_folder)
        refuse_custom_code(path)
        config = CausalConfig(**merged_settings(path, CausalConfig, settings))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        precision = precision or fast_precision(device)
        with naming_damage(path):
            known_as = AutoConfig.from_pretrained(path, trust_remote_code=False)
            if not is_causal(known_as):
                raise ValueError(f"{path}: {known_as.model_type} is no causal model, as Gemma is")
        model, tokenizer = load_parts(path, AutoModelForCausalLM, PRECISIONS[precision])
        name = str(name_or_folder).rstrip("/").split("/")[-1]
        return cls(model.to(device).eval(), tokenizer, name, config)

    @property
    def fingerprint(self) -> str:
        """A hash of settings, prompt and weights, 16 hex digits."""
        return weights_fingerprint(self.model, asdict(self.config) | asdict(PROMPTS[self.config.prompt]))

    @checked
    def save(self, folder: Path | str) -> None:
        """Write a transformers folder that also has the generator's settings, atomically.

        Raises:
            ValueError: `folder` exists and holds something other than a generator.
        """
        save_generator(folder, self.model, self.tokenizer, self.config)

    def read_tokens(self, passages: Sequence[str]) -> list[np.ndarray]:
        """The tokens that the model reads before it writes: prompt, passage, and the text after it.

        Args:
            passages: N texts, each cut to `passage_max_length` tokens.

        Returns:
            N times int64 [T].
        """
        rows, _ = self._rows(passages, "truncate")
        return [np.append(self._before, row["input_ids"]) for row in rows]

    def query_tokens(self, queries: Sequence[str]) -> list[np.ndarray]:
        """The tokens of queries as the model is to write them: a space comes first, and the line end last.

        Args:
            queries: N texts, each cut to `query_max_length` tokens, that of the line end included.

        Returns:
            N times int64 [L].
        """
        texts = [f" {' '.join(query.split())}" for query in queries]
        found = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [np.append(ids[: self.config.query_max_length - 1], self._line_end) for ids in found]

    def forget_read(self) -> None:
        """Read the examples again when they are next needed, since the weights have changed."""
        vars(self).pop("_examples_read", None)

    def move(self, device: str) -> None:
        """Move the model to another device, where the examples are read again."""
        super().move(device)
        self.forget_read()
        vars(self).pop("_ends", None)

    @cached_property
    def _line_end(self) -> int:
        """The token of a line's end; for a tokenizer without one that of a text's end."""
        line_end = self.tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
        tokens = [t for t in (*line_end, self.tokenizer.eos_token_id) if t is not None and self._ends[t]]
        if not tokens:
            raise ValueError(f"{self.name}: its tokenizer has no token that ends a line, and none for a text")
        return tokens[0]

    @cached_property
    def _ends(self) -> torch.Tensor:
        """Which tokens end a query: those with the end of a line, and those that end a text; bool [V]."""
        size = self.model.get_output_embeddings().weight.shape[0]
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        ends = torch.zeros(size, dtype=torch.bool)
        ends[[token for token, text in enumerate(texts) if LINE_END.search(text)]] = True
        stated = self.model.generation_config.eos_token_id
        ends[[t for t in (self.tokenizer.eos_token_id, *np.atleast_1d(stated)) if t is not None]] = True
        return ends.to(self.model.device)

    @cached_property
    def _examples_read(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of the text before all passages, for each layer."""
        cache = DynamicCache()
        with torch.inference_mode():
            ids = torch.tensor([self._before], device=self.model.device)
            self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _prepare(self, decoding: Decoding) -> None:
        if decoding.method == "beam":
            raise ValueError(f"{self.name} writes greedily or by sampling, not by beam search (method)")
        self._check_length(decoding.max_length)
        _ = self._examples_read, self._ends  # before threads need them

    def _tokens_beside(self, decoding: Decoding) -> int:
        return len(self._before) + decoding.num_queries * decoding.max_length

    def _rows(self, texts: Sequence[str], overflow: str) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
        lines = [f" {' '.join(text.split())}" for text in texts]
        longest, after = self.config.passage_max_length, np.asarray(self._after)
        rows, owners = tokenize(self.tokenizer, lines, "", longest, overflow, special=False)
        return [{"input_ids": np.append(row["input_ids"], after)} for row in rows], owners

    @torch.inference_mode()
    def _write(self, rows: list[dict], decoding: Decoding, seed: list[int]) -> list[list[Query]]:
        device, num = self.model.device, decoding.num_queries
        text, lengths = self._read([row["input_ids"] for row in rows])
        seen = ReadTexts(text, lengths, num, decoding.max_length)
        draw = Drawing(decoding, seed, device)
        tokens = torch.tensor([row["input_ids"][-1] for row in rows], device=device).repeat_interleave(num)
        query = torch.arange(len(tokens), device=device)  # the one that each row of the batch writes
        written = torch.full((len(tokens), decoding.max_length), -1, device=device)
        total = torch.zeros(len(tokens), device=device)
        anything = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)  # `seen` knows what is hidden
        for step in range(decoding.max_length):
            logits = self.model(
                input_ids=tokens[:, None],
                attention_mask=anything,
                position_ids=(seen.lengths[seen.rows // num] + step)[:, None],
                past_key_values=seen,
                use_cache=True,
            ).logits[:, 0]
            if step == 0:
                logits.masked_fill_(self._ends, -torch.inf)  # no query is empty
            tokens, log_probability = draw(logits, written[query, :step])
            written[query, step] = tokens
            total[query] += log_probability
            still = ~self._ends[tokens]
            if not still.any():
                break
            tokens, query = tokens[still], query[still]
            seen.go_on(still)
        counts = (written >= 0).sum(1)
        means = (total / counts).tolist()
        texts = [
            LINE_END.split(self.tokenizer.decode(ids[ids >= 0], skip_special_tokens=True))[0].strip()
            for ids in written.cpu()
        ]
        queries = [Query(" ".join(t.split()), mean) for t, mean in zip(texts, means, strict=True)]
        return [queries[i : i + num] for i in range(0, len(queries), num)]

    def _read(self, rows: Sequence[np.ndarray]) -> tuple[DynamicCache, torch.Tensor]:
        """Read B passages after the examples, all but the last token: keys and values, and lengths [B]."""
        device, size = self.model.device, len(self._before)
        padded = pad_batch(
            [{"input_ids": row[:-1]} for row in rows], {"input_ids": padding_id(self.tokenizer)}
        )
        ids = padded["input_ids"].to(device)
        lengths = torch.tensor([size + len(row) - 1 for row in rows], device=device)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._examples_read):
            cache.update(keys.expand(len(rows), -1, -1, -1), values.expand(len(rows), -1, -1, -1), layer)
        mask = torch.arange(size + ids.shape[1], device=device) < lengths[:, None]
        self.model.base_model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        return cache, lengths
