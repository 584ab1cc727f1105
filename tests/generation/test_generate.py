"""Queries on disk: each passage's, whatever was interrupted, and the same bytes."""

import json
from dataclasses import replace
from re import escape

import pytest
from killing import in_children
from made_models import save_checkpoint
from made_writers import save_causal

from dpr.data.collection import Collection, Passage
from dpr.files import crc32
from dpr.generation.decoding import Decoding
from dpr.generation.generate import generate_queries, read_queries, write_queries
from dpr.generation.generator import QueryGenerator
from dpr.generation.saved import SETTINGS
from dpr.generation.writer import Query

DECODING = Decoding(num_queries=2, max_length=4)
LENGTHS = {"passage_max_length": 10, "query_max_length": 6}
WORDS = ["masks", "zinc", "bats", "cold", "soap", "skin", "lungs", "water", "milk", "snow", "salt", "air"]

# Writes queries as each line of its input tells it, in a child of its own that may die before a file event.
SERVER = """
import json, sys

from dpr.data.collection import Collection, Passage
from dpr.generation.decoding import Decoding
from dpr.generation.generate import generate_queries
from dpr.generation.generator import QueryGenerator
from killing import serve

generator = QueryGenerator.from_pretrained(sys.argv[1], device="cpu", precision="float32")
passages = [Passage(*fields) for fields in json.loads(sys.argv[2])]
collection = Collection("made", passages, {}, {"test": {}})

def write(order):
    generate_queries(order["folder"], generator, collection, Decoding(**order["decoding"]), shard_size=3)
    return "done"

serve(write)
"""


@pytest.fixture(scope="module")
def folder(t5_folder, tmp_path_factory):
    """A tiny generator on disk."""
    path = tmp_path_factory.mktemp("generator") / "tiny"
    QueryGenerator.from_pretrained(t5_folder, device="cpu", **LENGTHS).save(path)
    return path


@pytest.fixture
def generator(folder):
    return QueryGenerator.from_pretrained(folder, device="cpu")


def made(num_passages):
    """Passages of 1 to 15 words, in no order of length."""
    texts = [" ".join((WORDS * 3)[i : i + 1 + i * 7 % 15]) for i in range(num_passages)]
    passages = [Passage(f"d{i}", f"Title {i}", text) for i, text in enumerate(texts)]
    return Collection("made", passages, {}, {"test": {}})


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.jsonl"))}


@pytest.mark.parametrize("shard_size", [1, 4, 100])
def test_greedy_queries_on_disk_are_those_in_memory(generator, tmp_path, shard_size):
    collection, greedy = made(9), Decoding("greedy", max_length=4)
    found = generate_queries(
        tmp_path / "new", generator, collection, greedy, min_words=0, shard_size=shard_size
    )
    expected = generator.generate([passage.contents for passage in collection.passages], greedy)
    assert found.queries == dict(zip(collection.doc_ids, expected, strict=True))
    assert found.num_skipped == 0
    assert found.passages_per_s > 0
    assert len(shards(tmp_path / "new")) == -(-9 // shard_size)


def test_every_shard_draws_anew(generator, tmp_path):
    same = [Passage(f"d{i}", "", "masks filter droplets and hands spread them") for i in range(4)]
    collection = Collection("made", same, {}, {"test": {}})
    found = generate_queries(tmp_path, generator, collection, DECODING, shard_size=1)
    assert len({tuple(queries) for queries in found.queries.values()}) == 4


def test_passages_that_are_too_short_are_left_out_and_counted(generator, tmp_path):
    collection = made(9)
    long_enough = [p.doc_id for p in collection.passages if len(p.text.split()) >= 6]
    found = generate_queries(tmp_path, generator, collection, DECODING, min_words=6)
    assert list(found.queries) == long_enough
    assert found.num_skipped == 9 - len(long_enough) > 0
    with pytest.raises(ValueError, match="made: no passage has 99 words"):
        generate_queries(tmp_path / "other", generator, collection, DECODING, min_words=99)


UNSPACED_TEXTS = {
    "ja": "信濃川は日本で最も長い川です。",
    "ja-short": "長い川",
    "zh": "蜜蜂采花蜜。",
    "th": "ผึ้งดูดน้ำหวาน",
    "mixed": "iPS細胞",
    "en": "bees eat nectar and pollen",
    "en-short": "bees eat nectar",
    "title-only": "",
}


@pytest.mark.parametrize("min_words", [1, 3, 4, 5, 10, 15])
def test_a_passage_without_spaces_is_as_long_as_its_characters(generator, tmp_path, min_words):
    lengths = {
        "ja": 15,
        "ja-short": 3,
        "zh": 6,
        "th": 14,
        "mixed": 3,
        "en": 5,
        "en-short": 3,
        "title-only": 0,
    }
    passages = [Passage(doc_id, "a title 川 of many words", text) for doc_id, text in UNSPACED_TEXTS.items()]
    collection = Collection("made", passages, {}, {"test": {}})
    greedy = Decoding("greedy", max_length=3)
    found = generate_queries(tmp_path, generator, collection, greedy, min_words=min_words)
    assert list(found.queries) == [doc_id for doc_id, length in lengths.items() if length >= min_words]
    assert found.num_skipped == len(passages) - len(found.queries)


def test_by_default_only_passages_of_fewer_than_five_words_are_skipped(generator, tmp_path):
    passages = [Passage(doc_id, "", text) for doc_id, text in UNSPACED_TEXTS.items()]
    collection = Collection("made", passages, {}, {"test": {}})
    found = generate_queries(tmp_path, generator, collection, Decoding("greedy", max_length=3))
    assert list(found.queries) == ["ja", "zh", "th", "en"]


def test_every_chunk_of_a_long_passage_has_queries(generator, tmp_path):
    collection = made(9)
    cut = generate_queries(tmp_path / "cut", generator, collection, DECODING, min_words=1)
    whole = generate_queries(
        tmp_path / "whole", generator, collection, DECODING, min_words=1, overflow="max_chunk"
    )
    longest = max(collection.passages, key=lambda p: len(p.text.split()))
    size = len(generator.tokenizer(longest.contents, add_special_tokens=False)["input_ids"])
    assert len(cut.queries[longest.doc_id]) == 2
    assert len(whole.queries[longest.doc_id]) == 2 * -(-size // 9) > 4  # of 10 tokens one is the end
    assert list(whole.queries) == collection.doc_ids


def test_queries_are_written_once_and_a_seed_changes_them(generator, tmp_path):
    first = generate_queries(tmp_path / "a", generator, made(9), DECODING, shard_size=3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("shard-*")}
    again = generate_queries(tmp_path / "a", generator, made(9), DECODING, shard_size=3)
    assert again.queries == first.queries
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = generate_queries(tmp_path / "b", generator, made(9), DECODING, shard_size=3, seed=1)
    assert other.queries != first.queries


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"decoding": Decoding(num_queries=3, max_length=4)}, "decoding is"),
        ({"seed": 1}, "seed is 0, now it would be 1"),
        ({"overflow": "max_chunk"}, "overflow is"),
        ({"min_words": 2}, "min_words is 5, now it would be 2"),
        ({"shard_size": 2}, "shard_size is 256, now it would be 2"),
        ({"collection": made(8)}, "collection is"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_folder_of_other_queries_is_refused_and_left_alone(generator, tmp_path, changed, message):
    arguments = {"generator": generator, "collection": made(9), "decoding": DECODING}
    generate_queries(tmp_path, **arguments)
    before = shards(tmp_path)
    with pytest.raises(ValueError, match=f"manifest.json: {message}.*give another folder"):
        generate_queries(tmp_path, **arguments | changed)
    assert shards(tmp_path) == before


def test_another_generator_is_refused(generator, tmp_path):
    generate_queries(tmp_path / "queries", generator, made(9), DECODING)
    save_checkpoint(tmp_path / "other", "t5", num_decoder_layers=1)
    other = QueryGenerator.from_pretrained(tmp_path / "other", device="cpu", **LENGTHS)
    with pytest.raises(ValueError, match="generator is"):
        generate_queries(tmp_path / "queries", other, made(9), DECODING)


def test_a_shard_that_lacks_passages_is_named(generator, tmp_path):
    generate_queries(tmp_path, generator, made(9), DECODING, shard_size=3)
    path = tmp_path / "shard-000001.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    about = path.with_suffix(".json")
    about.write_text(json.dumps({**json.loads(about.read_text()), "crc32": crc32(path)}))
    with pytest.raises(ValueError, match=r"shard-000001\.jsonl: damaged, it lacks passages"):
        generate_queries(tmp_path, generator, made(9), DECODING, shard_size=3)
    with pytest.raises(ValueError, match="shard_size must be at least 1, got 0"):
        generate_queries(tmp_path / "new", generator, made(9), DECODING, shard_size=0)


@pytest.mark.parametrize("damage", ["a changed letter", "cut", "emptied"])
def test_a_shard_that_has_changed_is_named_and_without_it_the_rest_is_kept(generator, tmp_path, damage):
    first = generate_queries(tmp_path, generator, made(9), DECODING, shard_size=3)
    path, kept = tmp_path / "shard-000001.jsonl", shards(tmp_path)
    data = path.read_bytes()
    at = data.index(b'["') + 3
    damaged = {"a changed letter": data[:at] + b"Q" + data[at + 1 :], "cut": data[:-9], "emptied": b""}
    path.write_bytes(damaged[damage])
    message = escape(f"{path}: damaged; delete it and run again, the rest is kept")
    with pytest.raises(ValueError, match=message):
        generate_queries(tmp_path, generator, made(9), DECODING, shard_size=3)
    path.unlink()
    assert generate_queries(tmp_path, generator, made(9), DECODING, shard_size=3).queries == first.queries
    assert shards(tmp_path) == kept


@pytest.mark.parametrize("name", ["manifest.json", "shard-000001.json"])
@pytest.mark.parametrize("text", ["", '{"seconds": 1', "[]"])
def test_a_damaged_description_is_named(generator, tmp_path, name, text):
    generate_queries(tmp_path, generator, made(9), DECODING, shard_size=3)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=escape(f"{tmp_path / name}: damaged")):
        generate_queries(tmp_path, generator, made(9), DECODING, shard_size=3)


@pytest.mark.parametrize("kind", ["t5", "causal"])  # each dies at every second event, both at all
def test_killed_before_any_file_event_the_same_bytes_come_out(folder, tmp_path, kind):
    if kind == "causal":
        folder = save_causal(tmp_path / "model", "gemma3")
        (folder / SETTINGS).write_text(json.dumps({**LENGTHS, "prompt": "none"}))
    generator = QueryGenerator.from_pretrained(folder, device="cpu", precision="float32")
    collection = made(9)
    decoding = {"num_queries": 2, "max_length": 2}
    generate_queries(tmp_path / "whole", generator, collection, Decoding(**decoding), shard_size=3)
    with in_children(SERVER, str(folder), json.dumps(list(collection.passages))) as ask:
        for kills in range(1 + (kind == "causal"), 200, 2):
            order = {"folder": str(tmp_path / f"killed-{kills}"), "decoding": decoding}
            if ask(**order, kill_before=kills) == "done":
                break
            assert ask(**order) == "done"
            assert shards(tmp_path / f"killed-{kills}") == shards(tmp_path / "whole")
            assert not list((tmp_path / f"killed-{kills}").glob(".*"))
    assert kills > 20


def test_queries_read_back_from_plain_and_gzipped_files(tmp_path):
    queries = {"d1": [Query("was ist Zink"), Query("größer?")], "d2": [], "d3": [Query("zinc", -0.25)]}
    for name in ("queries.jsonl", "queries.jsonl.gz"):
        write_queries(tmp_path / name, queries)
        assert read_queries(tmp_path / name) == queries


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"doc_id": 3, "queries": []}', "expected a doc_id and a list"),
        ('{"doc_id": "d1"}', "expected a doc_id and a list"),
        ('{"doc_id": "d1", "queries": [3]}', "queries must be texts"),
        ('{"doc_id": "d0", "queries": []}', "each doc_id come once"),
        ("[]", "expected a JSON object"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = tmp_path / "queries.jsonl"
    path.write_text('{"doc_id": "d0", "queries": ["a"]}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"queries\.jsonl:2: .*{message}"):
        read_queries(path)


def test_half_precision_is_another_setting(generator, tmp_path):
    generate_queries(tmp_path, generator, made(9), replace(DECODING, method="greedy", num_queries=1))
    generator.precision = "bfloat16"
    with pytest.raises(ValueError, match="precision is 'float32', now it would be 'bfloat16'"):
        generate_queries(tmp_path, generator, made(9), replace(DECODING, method="greedy", num_queries=1))
