"""Queries from an endpoint: what is sent, what is paid for, and what a kill or a bad server costs."""

import copy
import json
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from re import escape

import pytest
import requests
import torch
import transformers as hf
from killing import in_children
from made_models import SHAPE, make_tokenizer
from tokenizers import decoders

from dpr.data.collection import Collection, Passage
from dpr.generation.decoding import Decoding
from dpr.generation.endpoint import EndpointWriter
from dpr.generation.generate import generate_queries
from dpr.generation.llm import PROMPTS

KEY = "sk-0123456789abcdef"
TEXTS = [
    "masks filter droplets and vaccines",
    "zinc shortens a cold",
    "bats carry viruses in their lungs",
    "salt keeps the snow from sticking to roads",
    "milk and water",
    "soap washes viruses from the skin",
    "air moves",
]
COLLECTION = Collection("made", [Passage(f"d{i}", "", t) for i, t in enumerate(TEXTS)], {}, {"test": {}})
GREEDY = Decoding("greedy", max_length=6)
THREE = Decoding(num_queries=3, max_length=6, temperature=0.7, top_p=0.9)

# Writes queries as each line of its input tells it, in a child of its own that may die before a file event.
SERVER = """
import json, sys
from pathlib import Path

from dpr.data.collection import Collection, Passage
from dpr.generation.decoding import Decoding
from dpr.generation.endpoint import EndpointWriter
from dpr.generation.generate import generate_queries
from killing import serve

base_url, folder = sys.argv[1], Path(sys.argv[2])
passages = [Passage(*fields) for fields in json.loads(sys.argv[3])]
collection = Collection("made", passages, {}, {"test": {}})
journal = folder / "journal.jsonl"
writer = EndpointWriter("m", base_url, journal, prompt="none")
decoding = Decoding(num_queries=3, max_length=6)
EndpointWriter("m", base_url, f"{folder}.first", prompt="none").generate(["the first takes longer"], decoding)

def write(order):
    writer.parallel = order["parallel"]
    generate_queries(folder / "shards", writer, collection, decoding, shard_size=3, min_words=1)
    return "done"

serve(write, lambda order: journal.read_bytes().count(b"\\n") if journal.exists() else 0)
"""


class Endpoint(ThreadingHTTPServer):
    """Answers as the API reference says, misbehaves as it is told, and writes down what it is asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies, self.times, self.paths, self.keys = [], [], [], []
        self.misbehave = []  # for each request in turn: a status, (status, headers), "drop", seconds, or None
        self.most_choices, self.refused, self.logprobs, self.usage, self.form = 99, (), None, True, None
        self.now = self.most_at_a_time = 0
        self.input_tokens = self.output_tokens = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_):
        pass  # the client was killed or no longer waits


class Handler(BaseHTTPRequestHandler):
    """Answers one request the way the endpoint is set to."""

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.paths.append(self.path)
            server.keys.append(self.headers["Authorization"])
            server.now += 1
            server.most_at_a_time = max(server.now, server.most_at_a_time)
            wrong = server.misbehave.pop(0) if server.misbehave else None
        try:
            self.answer_or_not(body, wrong)
        finally:
            with server.lock:
                server.now -= 1

    def answer_or_not(self, body, wrong):
        if wrong == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif isinstance(wrong, float):
            time.sleep(wrong)
            self.reply(body)
        elif wrong:
            status, headers = wrong if isinstance(wrong, tuple) else (wrong, {})
            self.send(status, {"error": {"message": f"no, {self.headers['Authorization']}"}}, headers)
        elif refused := [field for field in self.server.refused if field in body]:
            self.send(400, {"error": {"message": f"unknown field {refused}"}})
        else:
            self.reply(body)

    def reply(self, body):
        server, num = self.server, min(body.get("n", 1), self.server.most_choices)
        if server.form is not None:
            self.send(200, server.form)
            return
        texts = [f"{passage_of(body)[:9]} {body.get('seed')} {i}" for i in range(num)]
        content = {"choices": [self.choice(i, text) for i, text in enumerate(texts)]}
        if server.usage:
            read, written = len(json.dumps(body)), sum(map(len, texts))
            content["usage"] = {
                "prompt_tokens": read,
                "completion_tokens": written,
                "total_tokens": read + written,
            }
            with server.lock:
                server.input_tokens += read
                server.output_tokens += written
        self.send(200, content)

    def choice(self, index, text):
        values = self.server.logprobs
        if "chat" in self.path:
            tokens = values and {
                "content": [{"token": "t", "logprob": v, "top_logprobs": []} for v in values]
            }
            answer = {"message": {"role": "assistant", "content": f" {text}"}}
        else:
            tokens, answer = values and {"token_logprobs": values}, {"text": f" {text}"}
        return {"index": index, "finish_reason": "stop", "logprobs": tokens, **answer}

    def send(self, status, content, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "text/html" if isinstance(content, bytes) else "application/json"
        about = {"Content-Type": kind, "Content-Length": len(data), **(headers or {})}
        for name, value in about.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def passage_of(body):
    """The passage that a request with the prompt `none` is about."""
    text = body["messages"][0]["content"] if "messages" in body else body["prompt"]
    prompt = PROMPTS["none"]
    assert text.startswith(f"{prompt.before} ")
    assert text.endswith(prompt.after)
    return text[len(prompt.before) + 1 : len(text) - len(prompt.after)]


@pytest.fixture(scope="module", autouse=True)
def no_proxy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.delenv("OPENAI_API_KEY", raising=False)
        yield


@contextmanager
def serving():
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    with serving() as server:
        yield server


@pytest.fixture
def make(endpoint, tmp_path):
    """Makes a writer for the endpoint, with a journal of this test's own."""

    def make(journal="journal.jsonl", **how):
        how = {"api_key": KEY, "prompt": "none", **how}
        return EndpointWriter("maker/model", endpoint.url, tmp_path / journal, **how)

    return make


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


# --- what is sent, and what comes of it ----------------------------------------------------------


@pytest.mark.parametrize("chat", [True, False])
def test_a_request_has_the_prompt_the_settings_and_the_key(make, endpoint, chat):
    writer = make(chat=chat)
    assert writer.generate(TEXTS[:1], THREE) != writer.generate(TEXTS[:1], THREE, seed=1)
    body, other = endpoint.bodies
    assert body.pop("seed") != other.pop("seed")
    assert body == other
    text = f"Document: {TEXTS[0]}\nQuery:"
    asked = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    how = {"max_tokens": 6, "temperature": 0.7, "top_p": 0.9, "stop": "\n", "n": 3}
    assert body == {"model": "maker/model", "logprobs": True if chat else 1, **asked, **how}
    assert set(endpoint.paths) == {"/v1/chat/completions" if chat else "/v1/completions"}
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    assert (writer.name, writer.precision) == ("model", "remote")


def test_greedy_is_a_temperature_of_zero_and_one_query(make, endpoint):
    [[query]] = make().generate(TEXTS[:1], GREEDY)
    [body] = endpoint.bodies
    assert query == f"{TEXTS[0][:9].strip()} {body['seed']} 0"
    assert (body["temperature"], body["n"], "top_p" in body) == (0, 1, False)


def test_the_key_comes_from_the_environment_if_there_is_one(make, endpoint, monkeypatch):
    make(api_key=None).generate(TEXTS[:1], GREEDY)
    monkeypatch.setenv("OPENAI_API_KEY", "from-outside\n")
    make("other", api_key=None).generate(TEXTS[:1], GREEDY)
    assert endpoint.keys == ["Bearer no-key", "Bearer from-outside"]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("logprobs", [[-1.0, -2.0, None], None])
def test_log_probabilities_are_means_or_unknown(make, endpoint, tmp_path, chat, logprobs):
    endpoint.logprobs = logprobs and logprobs[: 2 + (not chat)]
    for _ in range(2):  # from the endpoint and from the journal
        [(written, _)] = make(chat=chat).generate_blocks([TEXTS[:2]], THREE, [0])
        means = [query.log_probability for queries in written for query in queries]
        assert means == [-1.5] * 6 if logprobs else all(map(math.isnan, means))


@pytest.mark.parametrize(
    ("reply", "query"),
    [
        (" what  do\tbees eat \nDocument: next", "what do bees eat"),
        ("\n\nwhat do bees eat\r\n", "what do bees eat"),
        ("Query: what do bees eat", "what do bees eat"),
        ("half of a pair \ud83d", "half of a pair ?"),
        ("\u2028", ""),
        (None, ""),
    ],
)
def test_a_query_is_the_first_line_of_a_reply(make, endpoint, tmp_path, reply, query):
    endpoint.form = {"choices": [{"index": 0, "message": {"role": "assistant", "content": reply}}]}
    found = generate_queries(tmp_path / "shards", make(), COLLECTION, GREEDY, min_words=1)
    assert set(map(tuple, found.queries.values())) == {(query,)}


def test_a_long_passage_is_cut_or_split_by_words(make, endpoint):
    texts = ["one two  three\nfour five", "", "蜜蜂采花蜜", "six"]
    [(cut, owners)] = make(passage_max_words=2).generate_blocks([texts], GREEDY, [0])
    assert sorted(map(passage_of, endpoint.bodies)) == sorted(["one two", "", "蜜蜂", "six"])
    assert (len(cut), owners.tolist()) == (4, [0, 1, 2, 3])
    endpoint.bodies.clear()
    seen = []
    blocks = make("whole", passage_max_words=2).generate_blocks(
        [texts, texts], GREEDY, [0, 1], "max_chunk", progress=seen.append
    )
    for whole, owners in blocks:
        assert [queries[0].text.split()[0] for queries in whole if queries][:3] == ["one", "three", "five"]
        assert owners.tolist() == [0, 0, 0, 1, 2, 2, 2, 3]
    assert sum(seen) == 8
    chunks = ["one two", "three four", "five", "", "蜜蜂", "采花", "蜜", "six"]
    assert Counter(map(passage_of, endpoint.bodies)) == Counter(chunks * 2)


def test_results_are_in_order_however_many_requests_there_are_at_a_time(make, endpoint):
    endpoint.misbehave = [0.3, 0.2, 0.1, *[0.05] * 4]
    found = make(parallel=3).generate(TEXTS, THREE)
    assert [queries[0][:4] for queries in found] == [text[:4] for text in TEXTS]
    assert endpoint.most_at_a_time == 3
    again = make("again", parallel=1).generate(TEXTS, THREE)
    assert again == found


@pytest.mark.parametrize(("most", "num_requests"), [(99, 1), (2, 2), (1, 3)])
def test_an_endpoint_may_give_fewer_texts_than_asked_for(make, endpoint, most, num_requests):
    endpoint.most_choices = most
    writer = make()
    assert [len(set(queries)) for queries in writer.generate(TEXTS, THREE)] == [3] * len(TEXTS)
    assert len(endpoint.bodies) == writer.cost.requests == num_requests * len(TEXTS)
    assert len({body["seed"] for body in endpoint.bodies}) == len(endpoint.bodies)


@pytest.mark.parametrize("field", ["n", "seed", "logprobs"])
def test_an_endpoint_may_refuse_what_is_optional(make, endpoint, field):
    endpoint.refused = (field,)
    writer = make(parallel=1)
    assert [len(queries) for queries in writer.generate(TEXTS[:2], THREE)] == [3, 3]
    assert [field in body for body in endpoint.bodies] == [True] + [False] * 6
    assert writer.cost.requests == 6


# --- what is paid for ----------------------------------------------------------------------------


def test_the_cost_is_what_the_endpoint_counted_over_all_runs(make, endpoint, tmp_path):
    writer = make(price=(2.0, 8.0))
    assert (writer.cost.requests, writer.cost.dollars) == (0, 0)
    writer.generate(TEXTS[:3], THREE)
    make(price=(1.0, 1.0)).generate(TEXTS, THREE)
    cost = writer.cost
    assert cost.requests == len(endpoint.bodies) == len(TEXTS)
    assert (cost.input_tokens, cost.output_tokens) == (endpoint.input_tokens, endpoint.output_tokens)
    assert cost.dollars == pytest.approx((2 * cost.input_tokens + 8 * cost.output_tokens) / 1e6, rel=1e-12)
    assert make().cost.dollars is None
    other = EndpointWriter("other", endpoint.url, tmp_path / "journal.jsonl", price=(1.0, 1.0))
    assert other.cost.requests == 0
    endpoint.usage = False
    writer.generate(["another text"], THREE)
    assert (writer.cost.requests, writer.cost.dollars) == (len(TEXTS) + 1, None)


def test_what_is_in_the_journal_is_never_asked_again(make, endpoint, tmp_path):
    first = generate_queries(tmp_path / "a", make(), COLLECTION, THREE, min_words=1, shard_size=3)
    shutil.rmtree(tmp_path / "a")
    again = generate_queries(tmp_path / "b", make(), COLLECTION, THREE, min_words=1, shard_size=3)
    assert again.written.keys() == first.written.keys()
    assert again.queries == first.queries
    assert len(endpoint.bodies) == len(TEXTS)
    other = generate_queries(tmp_path / "c", make(), COLLECTION, THREE, min_words=1, shard_size=3, seed=1)
    assert other.queries != first.queries
    make().generate([TEXTS[0]] * 3, THREE)  # a text is drawn anew in each place
    assert len(endpoint.bodies) == 2 * len(TEXTS) + 2


def test_more_queries_add_to_those_paid_for(make, endpoint):
    writer = make()
    few = writer.generate(TEXTS, Decoding(num_queries=3, max_length=6))
    many = writer.generate(TEXTS, Decoding(num_queries=6, max_length=6))
    assert [queries[:3] for queries in many] == few
    assert [len(set(queries)) for queries in many] == [6] * len(TEXTS)
    assert [body["n"] for body in endpoint.bodies] == [3] * 2 * len(TEXTS)


def test_a_line_cut_by_a_kill_is_asked_again_and_no_other(make, endpoint, tmp_path):
    path = tmp_path / "journal.jsonl"
    first = make(parallel=1).generate(TEXTS, GREEDY)
    whole, last = path.read_bytes(), len(lines(path)[-1])
    for left in (1, 5, 9, last // 2, last - 1):
        endpoint.bodies.clear()
        path.write_bytes(whole[: len(whole) - last + left])
        assert make().cost.requests == len(TEXTS) - 1
        assert make(parallel=1).generate(TEXTS, GREEDY) == first
        assert list(map(passage_of, endpoint.bodies)) == TEXTS[-1:]
        assert path.read_bytes() == whole


def test_a_line_that_could_not_be_written_whole_is_written_over(make, endpoint, tmp_path, monkeypatch):
    path, writer = tmp_path / "journal.jsonl", make(parallel=1)
    written, failures = os.fsync, [OSError(28, "No space left on device")]

    def fsync(handle):
        written(handle)
        if len(lines(path)) == 3 and failures:
            os.truncate(handle, path.stat().st_size - 7)
            raise failures.pop()

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        writer.generate(TEXTS, GREEDY)
    writer.generate(TEXTS, GREEDY)
    assert len({json.loads(line)["key"] for line in lines(path)}) == len(lines(path)) == len(TEXTS)
    assert len(endpoint.bodies) == len(TEXTS) + 1


@pytest.mark.parametrize("content", [b"text", b'{"a": 1}\n', b'{"key": "1", \n{"key": "2"}\n'])
def test_another_file_is_no_journal_and_is_left_alone(make, tmp_path, content):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    for use in (lambda: make().cost, lambda: make().generate(TEXTS, GREEDY)):
        with pytest.raises(ValueError, match=escape(f"{path}: damaged, or no journal")):
            use()
    assert path.read_bytes() == content


def test_two_cannot_write_the_same_journal(make, endpoint):
    blocks = make().generate_blocks([TEXTS[:1], TEXTS[1:]], GREEDY, [0, 1])
    next(blocks)
    with pytest.raises(ValueError, match="another process is writing"):
        make().generate(TEXTS, GREEDY)
    assert len(list(blocks)) == 1
    make().generate(TEXTS, GREEDY)


def test_an_interruption_loses_nothing_that_was_answered(make, endpoint, tmp_path):
    def interrupt(count):
        if len(lines(tmp_path / "journal.jsonl")) >= 3:
            raise KeyboardInterrupt

    endpoint.misbehave = [0.05] * len(TEXTS)
    with pytest.raises(KeyboardInterrupt):
        list(make(parallel=2).generate_blocks([TEXTS], GREEDY, [0], progress=interrupt))
    assert 3 <= len(lines(tmp_path / "journal.jsonl")) == len(endpoint.bodies) < len(TEXTS)
    make().generate(TEXTS, GREEDY)
    assert len(endpoint.bodies) == len(TEXTS)


def test_an_interruption_sends_nothing_more_and_does_not_wait_for_its_turn(make, endpoint):
    def interrupt(count):
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(make(requests_per_minute=3).generate_blocks([TEXTS], GREEDY, [0], progress=interrupt))
    assert time.monotonic() - start < 10
    assert len(endpoint.bodies) == 1


@pytest.fixture(scope="module")
def mortal(tmp_path_factory):
    """An endpoint, the folder where a process writes the collection's queries, and how to order that."""
    work = tmp_path_factory.mktemp("mortal") / "work"
    passages = json.dumps(list(COLLECTION.passages))
    with serving() as endpoint, in_children(SERVER, endpoint.url, str(work), passages) as ask:
        yield endpoint, work, lambda **order: ask(folder=str(work), **order)


def shards(work):
    return {path.name: path.read_bytes() for path in work.glob("shards/shard-*.jsonl")}


def test_killed_before_any_file_event_nothing_kept_is_paid_twice(mortal):
    endpoint, work, ask = mortal
    assert ask(parallel=1) == "done"
    whole, kills, lost = shards(work), 0, 0
    while True:
        kills += 5
        shutil.rmtree(work)
        endpoint.bodies.clear()
        if ask(parallel=1, kill_before=kills) == "done":
            break
        journal = work / "journal.jsonl"
        kept = len(lines(journal)) if journal.exists() else 0
        assert len(endpoint.bodies) - kept in (0, 1)
        lost += len(endpoint.bodies) - kept
        endpoint.bodies.clear()
        assert ask(parallel=1) == "done"
        assert len(endpoint.bodies) == len(TEXTS) - kept
        assert shards(work) == whole
    assert kills > 20
    assert lost > 0  # some were killed between a reply and the journal


def test_killed_with_several_requests_under_way_only_those_are_paid_twice(mortal):
    endpoint, work, ask = mortal
    endpoint.most_choices = 1
    for kill in range(1, 14, 4):
        shutil.rmtree(work, ignore_errors=True)
        endpoint.bodies.clear()
        endpoint.misbehave = [0.03] * 100
        assert ask(parallel=3, kill_after=[kill, 0]) == "signal 9"
        time.sleep(0.05)
        kept, asked = len(lines(work / "journal.jsonl")), len(endpoint.bodies)
        assert kill <= kept <= asked <= kept + 3
        endpoint.misbehave = []
        assert ask(parallel=3) == "done"
        assert len(endpoint.bodies) - asked == 3 * len(TEXTS) - kept


# --- an endpoint that misbehaves -----------------------------------------------------------------


@pytest.mark.parametrize("wrong", [429, 500, 503, 408, "drop", 0.6])
def test_a_request_that_failed_is_sent_again(make, endpoint, wrong):
    endpoint.misbehave = [wrong, None, wrong, wrong]
    found = make(parallel=1, timeout_s=0.3).generate(TEXTS, GREEDY)
    assert all(len(queries) == 1 for queries in found)
    passages = [0, 0, 1, 1, 1, *range(2, len(TEXTS))]
    assert list(map(passage_of, endpoint.bodies)) == [TEXTS[i] for i in passages]


def test_the_pauses_double_or_are_those_the_endpoint_asks_for(make, endpoint):
    endpoint.misbehave = [500, "drop", 503, (429, {"Retry-After": "1"})]
    make().generate(TEXTS[:1], GREEDY)
    pauses = [after - before for before, after in zip(endpoint.times, endpoint.times[1:], strict=False)]
    assert all(pause >= least for pause, least in zip(pauses, [0.015, 0.03, 0.06, 1], strict=True))
    assert max(pauses[:3]) < 1


def test_after_the_last_attempt_the_error_says_what_is_done_and_the_next_run_goes_on(make, endpoint):
    endpoint.misbehave = [None, None, None, *[500] * 9]
    message = (
        escape(f"{endpoint.url}, model maker/model: Error code: 500")
        + ".* 3 times; 3 passages are done, their replies are kept in .*journal.jsonl: run again to go on"
    )
    with pytest.raises(ConnectionError, match=message):
        make(parallel=1, attempts=3).generate(TEXTS, GREEDY)
    endpoint.bodies.clear()
    endpoint.misbehave = [500] * 9
    with pytest.raises(ConnectionError, match="3 times; 0 passages"):
        make(attempts=3).generate(TEXTS[-1:], GREEDY)
    assert len(endpoint.bodies) == 3
    endpoint.bodies.clear()
    endpoint.misbehave.clear()
    make().generate(TEXTS, GREEDY)
    assert len(endpoint.bodies) == len(TEXTS) - 3


def test_an_endpoint_that_is_not_there_is_named(make, endpoint, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        writer = EndpointWriter("m", url, tmp_path / "j", attempts=2)
        with pytest.raises(ConnectionError, match=f"{url}, model m: .*, 2 times; 0 passages"):
            writer.generate(TEXTS, GREEDY)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "check the key"),
        (403, "may use this model"),
        (404, "check model, base_url"),
        (400, "check that"),
    ],
)
def test_a_refusal_stops_at_once_and_says_what_to_do(make, endpoint, status, advice):
    endpoint.misbehave = [None] + [status] * 9
    where = escape(f"{endpoint.url}, model maker/model: Error code: {status}")
    with pytest.raises(ValueError, match=f"{where}.*{advice}.*1 passages are done"):
        make(parallel=1).generate(TEXTS, GREEDY)
    each = 2 if status == 400 else 1  # once more without the optional fields
    assert 1 + each <= len(endpoint.bodies) <= 1 + 2 * each  # the next passage may be under way


@pytest.mark.parametrize(
    "form", [{"choices": []}, {"choices": [{"index": 0}]}, {"answer": 3}, b"<html>welcome</html>"]
)
def test_a_reply_in_another_form_is_shown(make, endpoint, form):
    endpoint.form = form
    with pytest.raises(ValueError, match=f"{endpoint.url}, model maker/model: a reply without choices: "):
        make().generate(TEXTS, GREEDY)


def test_requests_are_spaced_repeated_ones_too(make, endpoint):
    endpoint.misbehave = [500, 500]
    writer, begun = make(requests_per_minute=300), time.monotonic()
    writer.generate(TEXTS, GREEDY)
    assert len(endpoint.times) == len(TEXTS) + 2
    assert max(endpoint.times) - begun >= 0.2 * (len(TEXTS) + 1)  # a busy machine only makes it longer


def test_the_key_is_in_no_file_message_log_or_description(make, endpoint, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    writer = make()
    generate_queries(tmp_path / "shards", writer, COLLECTION, THREE, min_words=1)
    endpoint.misbehave = [401] * 9
    with pytest.raises(ValueError, match="no, Bearer …") as refused:
        writer.generate(["another text"], THREE)
    told = [repr(writer), str(refused.value), caplog.text, writer.fingerprint, str(writer.cost)]
    assert not [text for text in told if KEY in text]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


# --- settings ------------------------------------------------------------------------------------


def test_the_fingerprint_tells_what_the_queries_depend_on(make):
    same = {"api_key": "k", "price": (1, 2), "requests_per_minute": 3, "parallel": 1, "attempts": 2}
    others = [{"prompt": "examples"}, {"chat": False}, {"passage_max_words": 9}]
    prints = [make(**how).fingerprint for how in ({}, same, *others)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
    assert all(len(found) == 16 for found in prints)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": "mine"}, "prompt must be one of examples"),
        ({"passage_max_words": 0}, "passage_max_words must be at least 1, got 0"),
        ({"parallel": 0}, "parallel must be at least 1, got 0"),
        ({"attempts": 0}, "attempts must be at least 1, got 0"),
        ({"attempts": 1.5}, "attempts must be int"),
        ({"requests_per_minute": 0}, "requests_per_minute must be above 0, got 0"),
        ({"timeout_s": math.nan}, "timeout_s must be above 0, got nan"),
        ({"price": (1.0,)}, "price must be two numbers"),
        ({"price": (1.0, -1.0)}, "price must be two numbers"),
        ({"api_key": b"secret"}, "api_key must be a text"),
        ({"api_key": "sécret"}, "api_key must be a text"),
        ({"api_key": "sec ret"}, "api_key must be a text"),
    ],
)
def test_a_wrong_setting_is_named(make, changed, message):
    with pytest.raises(ValueError, match=message) as refused:
        make(**changed)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "url"), [("", "http://a/v1"), ("m", "localhost:8000"), ("m", "http://me:secret@a/v1")]
)
def test_a_wrong_address_is_refused_without_showing_it(tmp_path, model, url):
    with pytest.raises(ValueError, match="must") as refused:
        EndpointWriter(model, url, tmp_path / "j")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "decoding", [Decoding("beam", num_beams=2), Decoding("greedy", repetition_penalty=1.2)]
)
def test_what_an_endpoint_cannot_do_is_refused(make, endpoint, decoding):
    with pytest.raises(ValueError, match="no beam search"):
        make().generate(TEXTS, decoding)
    with pytest.raises(ValueError, match="overflow must be one of"):
        list(make().generate_blocks([TEXTS], GREEDY, [0], "split"))
    assert not endpoint.bodies


# --- a real server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A tiny causal model behind `transformers serve`: its folder, its parts and the address."""
    folder = tmp_path_factory.mktemp("served") / "tiny-llama"
    tokenizer = copy.deepcopy(make_tokenizer("no marks, no padding"))
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}reply:"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {**SHAPE, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**shape, initializer_range=0.5, pad_token_id=0)).eval()
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(folder)]
    where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    log = (folder.parent / "log").open("w")
    with log, subprocess.Popen([*command, *where], stdout=log, stderr=log, env=environment) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process)
            yield str(folder), model, tokenizer, f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def wait_for(url, process):
    """Wait until a server is up, a minute at most."""
    with requests.Session() as session:
        session.trust_env = False
        for _ in range(600):
            assert process.poll() is None
            try:
                assert session.get(url, timeout=5).ok
                return
            except requests.ConnectionError:
                time.sleep(0.1)
    raise AssertionError("the server did not start")


@pytest.mark.parametrize("chat", [True, False])
def test_queries_of_a_real_server_are_those_of_its_model(served, tmp_path, chat):
    folder, model, tokenizer, url = served
    writer = EndpointWriter(folder, url, tmp_path / "j", chat=chat, prompt="examples", price=(1.0, 1.0))
    found = generate_queries(tmp_path / "shards", writer, COLLECTION, GREEDY, min_words=1)
    num_read = num_written = 0
    for passage in COLLECTION.passages:
        text = f"{PROMPTS['examples'].before} {passage.text}{PROMPTS['examples'].after}"
        text = f"user: {text}\nreply:" if chat else text
        ids = tokenizer(text, return_tensors="pt")
        how = {"do_sample": False, "max_new_tokens": 6, "stop_strings": ["\n"], "tokenizer": tokenizer}
        reply = model.generate(**ids, **how)[0, ids["input_ids"].shape[1] :]
        lines = tokenizer.decode(reply, skip_special_tokens=True).strip().replace("\r", "\n").split("\n")
        assert found.queries[passage.doc_id] == [" ".join(lines[0].split())]
        num_read, num_written = num_read + ids["input_ids"].numel(), num_written + len(reply)
    cost = writer.cost
    assert (cost.requests, cost.input_tokens, cost.output_tokens) == (len(TEXTS), num_read, num_written)
    assert all(math.isnan(query.log_probability) for [query] in found.written.values())


def test_a_real_server_draws_each_query_and_heeds_the_seed(served, tmp_path):
    folder, _, _, url = served
    drawn = [
        EndpointWriter(folder, url, tmp_path / f"j{i}", chat=False, prompt="none", parallel=1).generate(
            TEXTS[:3], THREE, seed
        )
        for i, seed in enumerate([0, 0, 1])
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(set(queries)) for queries in drawn[0]] == [3, 3, 3]


def test_a_real_server_refuses_another_model_at_once(served, tmp_path):
    with pytest.raises(ValueError, match=r"model other: .*Server is pinned to"):
        EndpointWriter("other", served[-1], tmp_path / "j").generate(TEXTS, GREEDY)
