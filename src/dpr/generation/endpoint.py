"""Queries by a model behind an OpenAI-compatible endpoint, whose every reply is kept, as each is paid for.

Source: OpenAI API reference, chat completions and completions,
https://platform.openai.com/docs/api-reference/chat.
"""

import hashlib
import json
import math
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import InitVar, asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai

from dpr.arguments import check_fields_of
from dpr.data.text import SEGMENT, SURROGATE
from dpr.files import locked
from dpr.generation.decoding import Decoding
from dpr.generation.llm import LINE_END, PROMPTS
from dpr.generation.writer import Query, Writer
from dpr.models.batching import OVERFLOWS, checked_texts

START = b'{"key": "'  # of each line of a journal
ADVICE = {  # HTTP status → what to do
    401: "check the key (api_key, or OPENAI_API_KEY)",
    403: "check that the key may use this model",
    404: "check model, base_url (most end in /v1) and chat",
}


@dataclass(frozen=True)
class Cost:
    """What the replies in a journal cost.

    Attributes:
        requests: Number of replies.
        input_tokens: Tokens read, as the endpoint counts them; 0 for replies for which it does not.
        output_tokens: Tokens written, likewise.
        dollars: Their price, without discounts; None if it is not known or tokens were not counted.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    dollars: float | None


@dataclass(eq=False)
class EndpointWriter(Writer):
    """Writes queries with a model that an OpenAI-compatible endpoint serves.

    Each reply is in the journal, on the disk, before anything else happens; whatever is there is never asked
    again. Only requests that are under way when the process dies, at most `parallel`, may be paid twice, and
    those that time out. An endpoint that gives fewer than `n` texts is asked again for the rest, and one that
    refuses the optional fields `n`, `seed` and `logprobs` is asked without them. Queries are the same again
    only as far as the endpoint heeds the seed; what the journal holds is always the same.

    Args:
        model: The model's name at the endpoint. Models that think before they answer do not fit
            `Decoding.max_length`.
        base_url: Address of the endpoint, such as `http://localhost:8000/v1`.
        journal: File of JSON lines that keeps the replies, made if it is missing, outside the folder of
            shards.
        api_key: The key; by default that in the environment variable OPENAI_API_KEY, if there is one. It is
            sent to `base_url` and written nowhere.
        chat: Whether the prompt is sent as a user's message (`/chat/completions`) or as a text to go on
            with (`/completions`).
        prompt: A key of `dpr.generation.llm.PROMPTS`.
        passage_max_words: Passages are cut to this many words, for the endpoint's tokenizer is not known;
            in scripts without spaces between words, each character counts as one.
        price: Dollars for a million tokens read, and for a million written.
        requests_per_minute: Most requests in a minute, evenly spaced, repeated ones included.
        parallel: Requests at a time.
        attempts: How often a request is sent that meets a lost connection, no answer in time, or the status
            408, 409, 429 or 5xx: after the endpoint's `Retry-After` of up to a minute, else after 0.5
            seconds and then twice as long each time, up to 8.
        timeout_s: Seconds without a byte from the endpoint after which a request has failed.

    Raises:
        ValueError: A value outside its range; the message names it.
    """

    model: str
    base_url: str
    journal: Path | str
    api_key: InitVar[Any] = None
    chat: bool = True
    prompt: str = "examples"
    passage_max_words: int = 200
    price: tuple[float, float] | None = None
    requests_per_minute: float | None = None
    parallel: int = 4
    attempts: int = 8
    timeout_s: float = 120.0

    def __post_init__(self, api_key):
        check_fields_of(self)
        self.base_url = self.base_url.rstrip("/")
        self._check()
        key = api_key or os.environ.get("OPENAI_API_KEY") or "no-key"
        if not isinstance(key, str) or not re.fullmatch("[!-~]+", key := key.strip()):
            raise ValueError("api_key must be a text of printable ASCII characters without spaces")
        self.name, self.precision = self.model.split("/")[-1], "remote"
        self._journal = _Journal(Path(self.journal))
        self._client = openai.OpenAI(
            api_key=key,
            base_url=self.base_url,
            max_retries=self.attempts - 1,
            timeout=self.timeout_s,
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [self._wait_for_turn]}),
        )
        self._plain = False  # whether the endpoint refuses the optional fields
        self._stopping, self._lock, self._next = threading.Event(), threading.Lock(), 0.0
        self._failure: BaseException | None = None

    def _check(self) -> None:
        """Raise ValueError for a value outside its range."""
        if not self.model:
            raise ValueError("model must not be empty")
        if not self.base_url.startswith(("http://", "https://")) or "@" in self.base_url:
            raise ValueError("base_url must begin with http:// or https:// and hold no name or password")
        if self.prompt not in PROMPTS:
            raise ValueError(f"prompt must be one of {', '.join(PROMPTS)}, got {self.prompt!r}")
        for field in ("passage_max_words", "parallel", "attempts"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field in ("requests_per_minute", "timeout_s"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{field} must be above 0, got {value}")
        if self.price and not (len(self.price) == 2 and all(0 <= one < math.inf for one in self.price)):
            raise ValueError(f"price must be two numbers of at least 0, got {self.price!r}")

    @property
    def fingerprint(self) -> str:
        """A hash of model, address, prompt and limit, 16 hex digits."""
        about = [self.model, self.base_url, self.chat, self.passage_max_words, asdict(PROMPTS[self.prompt])]
        return _digest(about)[:16]

    @property
    def cost(self) -> Cost:
        """What this model's replies in the journal cost, those of earlier processes included.

        Raises:
            ValueError: The file is no journal, or damaged.
        """
        found = [record for record in self._journal.read()[0] if record["model"] == self.model]
        counts = [(record["input_tokens"], record["output_tokens"]) for record in found]
        read, written = (sum(pair[side] or 0 for pair in counts) for side in (0, 1))
        dollars = None
        if self.price and not any(None in pair for pair in counts):
            dollars = (read * self.price[0] + written * self.price[1]) / 1e6
        return Cost(len(found), read, written, dollars)

    def generate_blocks(
        self,
        blocks: Iterable[Sequence[str]],
        decoding: Decoding,
        seeds: Iterable[int],
        overflow: str = "truncate",
        batch_tokens: int | None = None,
        progress: Callable[[int], object] = lambda texts: None,
    ) -> Iterator[tuple[list[list[Query]], np.ndarray]]:
        """Write queries for one block of passages after the other; see also `Writer.generate_blocks`.

        `temperature` and `top_p` are sent, `top_k` is not: the interface has no such field. There are no
        batches, so `batch_tokens` has no effect.

        Raises:
            ValueError: Beam search, a repetition penalty or an unknown overflow; another process holds the
                journal; the endpoint refuses the request or answers in another form.
            ConnectionError: A request failed `attempts` times.
        """
        if decoding.method == "beam" or decoding.repetition_penalty != 1:
            raise ValueError(f"{self.name}: endpoints have no beam search (method) and no repetition_penalty")
        if overflow not in OVERFLOWS:
            raise ValueError(f"overflow must be one of {OVERFLOWS}, got {overflow!r}")
        done, firsts = 0, set()
        with self._journal.opened(), ThreadPoolExecutor(self.parallel) as pool:
            self._stopping.clear()
            self._failure = None
            try:
                for block, seed in zip(blocks, seeds, strict=True):
                    rows, owners = self._rows(checked_texts(block), overflow)
                    written = [
                        pool.submit(self._write, row, decoding, [int(seed), at])
                        for at, row in enumerate(rows)
                    ]
                    firsts = {written[i] for i in np.unique(owners, return_index=True)[1]}
                    for task in as_completed(written):
                        task.result()
                        if task in firsts:
                            progress(1)
                    done, firsts = done + len(firsts), set()
                    yield [task.result() for task in written], owners
            except BaseException as raised:
                error = self._failure or raised  # what came after the first failure was only stopped
                self._stopping.set()
                pool.shutdown(cancel_futures=True)
                if isinstance(error, openai.OpenAIError):
                    done += sum(not task.cancelled() and task.exception() is None for task in firsts)
                    raise self._explained(error, done) from None
                raise error from None

    def _rows(self, texts: Sequence[str], overflow: str) -> tuple[list[str], np.ndarray]:
        """The chunks of each passage, only the first with `truncate`, and the position of its passage."""
        rows, owners = [], []
        for position, text in enumerate(" ".join(text.split()) for text in texts):
            starts = [found.start() for found in SEGMENT.finditer(text)][:: self.passage_max_words] or [0]
            ends = [*starts[1:], len(text)]
            chunks = [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]
            kept = chunks[:1] if overflow == "truncate" else chunks
            rows += kept
            owners += [position] * len(kept)
        return rows, np.array(owners, dtype=np.int64)

    def _body(self, passage: str, decoding: Decoding) -> dict[str, Any]:
        """The fields of a request that every endpoint understands."""
        prompt, greedy = PROMPTS[self.prompt], decoding.method == "greedy"
        text = f"{prompt.before} {SURROGATE.sub('?', passage)}{prompt.after}"
        asked = {"messages": [{"role": "user", "content": text}]} if self.chat else {"prompt": text}
        how = {"temperature": 0.0 if greedy else float(decoding.temperature)}
        if not greedy and decoding.top_p < 1:
            how["top_p"] = float(decoding.top_p)
        return {"model": self.model, **asked, "max_tokens": int(decoding.max_length), **how, "stop": "\n"}

    def _write(self, passage: str, decoding: Decoding, seed: list[int]) -> list[Query]:
        """Write a passage's queries; a failure stops all that has not been sent yet."""
        try:
            return self._write_or_read(passage, decoding, seed)
        except BaseException as error:
            self._failure = self._failure or error
            self._stopping.set()  # at once: each further request would be paid
            raise

    def _write_or_read(self, passage: str, decoding: Decoding, seed: list[int]) -> list[Query]:
        """A passage's queries: those in the journal, and as many new ones as are missing there."""
        body, num = self._body(passage, decoding), decoding.num_queries
        key = _digest([self.base_url, body, seed])
        replies = self._journal.replies[key]
        while (written := sum(len(one["texts"]) for one in replies)) < num:
            optional = {"n": num - written, "seed": int(_digest([key, written])[:7], 16)}
            reply = self._ask(body, {**optional, "logprobs": True if self.chat else 1})
            self._journal.add({"key": key, "model": self.model, **self._read(reply)})
        pairs = [pair for one in replies for pair in zip(one["texts"], one["log_probabilities"], strict=True)]
        label = LINE_END.split(PROMPTS[self.prompt].after)[-1]
        return [Query(_first_line(text, label), math.nan if m is None else m) for text, m in pairs[:num]]

    def _ask(self, body: Mapping[str, Any], optional: Mapping[str, Any]):
        """Send a request; if it is refused, once more without the optional fields."""
        create = (self._client.chat.completions if self.chat else self._client.completions).create
        if not self._plain:
            try:
                return create(**body, **optional)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                pass
        reply = create(**body)
        self._plain = True
        return reply

    def _read(self, reply: Any) -> dict[str, Any]:
        """A reply's texts, mean log probabilities and tokens; None where the endpoint does not tell."""
        texts, usage = [], getattr(reply, "usage", None)
        with suppress(AttributeError, TypeError):
            texts = [(one.message.content if self.chat else one.text) or "" for one in reply.choices]
        if not texts:
            shown = str(reply)[:200]
            raise ValueError(f"{self.base_url}, model {self.model}: a reply without choices: {shown}")
        return {
            "texts": texts,
            "log_probabilities": [_mean_log_probability(choice) for choice in reply.choices],
            "input_tokens": getattr(usage, "prompt_tokens", None),
            "output_tokens": getattr(usage, "completion_tokens", None),
        }

    def _wait_for_turn(self, request: Any) -> None:
        """Wait until the next request may be sent; raise if none is to be sent any more."""
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + (60 / self.requests_per_minute if self.requests_per_minute else 0)
        if self._stopping.wait(at - now):
            raise openai.OpenAIError("stopped")

    def _explained(self, error: openai.OpenAIError, done: int) -> Exception:
        """The error to raise for the client's own: which endpoint, what happened, and what to do."""
        status = getattr(error, "status_code", 0)
        what = str(error).replace(self._client.api_key, "…")[:300]
        where = f"{self.base_url}, model {self.model}: {what}"
        kept = f"{done} passages are done, their replies are kept in {self.journal}"
        if 400 <= status < 500 and status not in (408, 409, 429):
            advice = ADVICE.get(status, "check that the model takes such a request and so long a prompt")
            return ValueError(f"{where}; {advice}; {kept}")
        return ConnectionError(f"{where}, {self.attempts} times; {kept}: run again to go on")


class _Journal:
    """A file of JSON lines, one for each reply, that two processes cannot write at a time."""

    def __init__(self, path: Path):
        self.path, self._lock = path, threading.Lock()
        self._size, self.replies = 0, defaultdict(list)  # by key, in the order in which they came

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the file and read what it holds."""
        with locked(self.path.with_name(f"{self.path.name}.lock")):
            self.path.touch()
            records, self._size = self.read()
            self.replies.clear()
            for record in records:
                self.replies[record["key"]].append(record)
            yield

    def read(self) -> tuple[list[dict[str, Any]], int]:
        """All replies, and the bytes they take; a last line that was not written whole is none."""
        data = self.path.read_bytes() if self.path.exists() else b""
        *lines, torn = data.split(b"\n")
        with suppress(ValueError):
            if START.startswith(torn[: len(START)]) and all(line.startswith(START) for line in lines):
                return [json.loads(line) for line in lines], len(data) - len(torn)
        raise ValueError(f"{self.path}: damaged, or no journal of an EndpointWriter; name another file")

    def add(self, record: dict[str, Any]) -> None:
        """Write a reply to the disk, in the place of a line that was not written whole."""
        line = json.dumps(record).encode() + b"\n"
        with self._lock:
            os.truncate(self.path, self._size)
            with self.path.open("ab") as stream:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
            self._size += len(line)
            self.replies[record["key"]].append(record)


def _digest(content: Any) -> str:
    """32 hex digits of SHA-256 over JSON values."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _first_line(text: str, label: str) -> str:
    """A reply's first line, without the label that it should go on after and without extra white space."""
    line = LINE_END.split(text.strip().removeprefix(label).strip())[0]
    return SURROGATE.sub("?", " ".join(line.split()))


def _mean_log_probability(choice: Any) -> float | None:
    """The mean log probability of a choice's tokens; None if the endpoint does not tell."""
    found = getattr(choice, "logprobs", None)
    tokens = [token.logprob for token in getattr(found, "content", None) or []]
    known = [value for value in tokens or getattr(found, "token_logprobs", None) or [] if value is not None]
    return sum(known) / len(known) if known else None
