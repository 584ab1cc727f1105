"""Writes the README's tables and figure from the files in runs/: `python -m dpr.experiments.report`."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from string import ascii_lowercase
from typing import NamedTuple

import numpy as np

from dpr.data.loading import project_root
from dpr.evaluation.significance import LEVEL, POWER, smallest_difference, superscripts
from dpr.experiments.profiles import TRAINED_ON
from dpr.experiments.published import PUBLISHED, published
from dpr.experiments.results import Result, load_result, load_results
from dpr.files import atomic_path, read_json, write_text

COLLECTIONS = {"scifact": "SciFact", "nfcorpus": "NFCorpus"}  # those the README shows, in this order
SUMMARY = {  # the systems of the first table → what they are, in words
    "bm25": "BM25: matching terms",
    "all-MiniLM-L6-v2": "a ready MiniLM bi-encoder",
    "all-MiniLM-L6-v2-ft": "the same, fine-tuned here",
    "rrf-bm25-all-MiniLM-L6-v2-ft": "fine-tuned and BM25, merged",
    "bm25-ce": "BM25's first hits, reranked here",
    "rrf-bm25-ce-all-MiniLM-L6-v2-ft": "reranked, fine-tuned and BM25, merged",
}
UNSHARED = "all-MiniLM-L6-v2-ft-unshared"  # fine-tuned without the answers to test queries
BASELINE = "bm25"
COLUMNS = ("nDCG@10", "RR@10", "R@100")
FIGURE = "runs/results.png"
SAID = {  # field of a result's settings → sentence in the caption
    "tuned_on": "`{}` was tuned on {}.",
    "trained_on": "`{}` was fine-tuned on {}.",
    "written_by": "The queries of `{}` were written by {}.",
}
NOTE = "¹"  # of systems that use an encoder of `TRAINED_ON`


def results_table(folder: Path) -> str:
    """A markdown table of the systems in `runs/<collection>`, best nDCG@10 first, with its caption.

    Each system has a letter; behind its nDCG@10 are the letters of those it is proven better than.

    Raises:
        FileNotFoundError: The folder has no run.
        ValueError: The folder's runs were not all made over the same passages and queries, or are of more
            than 26 systems.
    """
    results = load_results(folder)
    made_of = {tuple(r.metadata["fingerprints"].values()) for r in results.values()}
    if len(made_of) > 1:
        raise ValueError(f"{folder}: runs over different passages or queries; run the notebooks again")
    per_query = {system: result.evaluation.per_query[COLUMNS[0]] for system, result in results.items()}
    several = len(next(iter(per_query.values()))) > 1
    better_than = superscripts(per_query) if several else dict.fromkeys(results, "")
    seen = {system: answers_seen(system, results) for system in results}
    head = ["", "system", *COLUMNS, f"published {COLUMNS[0]}", "index MiB", "run", "notebook"]
    rules = ["---", "---", *["---:"] * (len(COLUMNS) + 2), "---", "---"]
    shows_seen = any(share is not None for share in seen.values())
    if shows_seen:
        head.insert(-2, "test queries whose answer training showed")
        rules.insert(-2, "---:")
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(rules)}|"]
    for letter, (system, result) in zip(ascii_lowercase, results.items(), strict=False):
        cells = [letter, system + (NOTE if broadly_trained(system, results) else "")]
        cells += _cells(result, better_than[system])
        if shows_seen:
            cells.insert(-2, "–" if seen[system] is None else f"{seen[system]:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _caption(results)])


def _cells(result: Result, better_than: str) -> list[str]:
    """The cells of one system from its metrics to its notebook."""
    means, theirs = result.evaluation.means, published(result.collection, result.system)
    cells = [f"{means[metric]:.4f}" for metric in COLUMNS]
    if better_than:
        cells[0] += f" <sup>{better_than}</sup>"
    seeds = [found[COLUMNS[0]] for found in result.metadata.get("seeds", {}).values()]
    if len(seeds) > 1:
        cells[0] += f" ({min(seeds):.4f}–{max(seeds):.4f})"
    full, index_bytes = result.metadata["scope"] == "full corpus", result.metadata.get("index_bytes")
    cells.append(f"{theirs.value:.4f}" if theirs and full else "–")
    cells.append("–" if index_bytes is None else f"{index_bytes / 2**20:.1f}")
    notebook = result.metadata["notebook"]
    cells.append(f"[run](runs/{result.collection}/{result.system}.trec.gz)")
    return [*cells, f"[{notebook[:2]}](notebooks/{notebook}.ipynb)"]


def _and_its_parts(system: str, results: Mapping[str, Result]) -> list[Result]:
    """A result and, if it merges others, theirs."""
    merged = results[system].metadata["config"].get("runs", [])
    return [results[system], *(results[part] for part in merged if part in results)]


def broadly_trained(system: str, results: Mapping[str, Result]) -> bool:
    """Whether a system is an encoder of `TRAINED_ON`, was fine-tuned from one, or merges one of these."""
    parts = _and_its_parts(system, results)
    return any(r.system in TRAINED_ON or r.metadata["config"].get("starts_from") in TRAINED_ON for r in parts)


def answers_seen(system: str, results: Mapping[str, Result]) -> float | None:
    """Share of the test queries with an answer that fine-tuning has shown to a system, or to a part of it.

    None for a system without fine-tuning.
    """
    parts = _and_its_parts(system, results)
    return next(
        (share for r in parts if (share := r.metadata["config"].get("answers_seen")) is not None), None
    )


def _caption(results: dict[str, Result]) -> str:
    """The caption of a table: queries, scope, depth, hardware and the smallest provable difference."""
    metadata = next(iter(results.values())).metadata
    depth = " or ".join(str(d) for d in sorted({r.metadata["depth"] for r in results.values()}))
    caption = (
        f"{metadata['num_queries']} {metadata['split']} queries, {metadata['scope']}, "
        f"depth {depth}, {'; '.join(sorted({r.metadata['hardware'] for r in results.values()}))}. "
        f"Raised letters: the systems that one is proven better than (Fisher, all pairs, Holm, p ≤ {LEVEL})."
    )
    smallest = {system: value for system, value in smallest_provable(results).items() if value > 0}
    if smallest:
        caption += (
            f" The smallest true nDCG@10 difference from {BASELINE} that these queries would show (paired, "
            f"two-sided {LEVEL}, power {POWER}): {min(smallest.values()):.3f} to "
            f"{max(smallest.values()):.3f}, by system."
        )
    known = {r.system for r in results.values()} | {
        r.metadata["config"].get("starts_from") for r in results.values()
    }
    told = sorted({TRAINED_ON[name] for name in known if name in TRAINED_ON})
    if told:
        caption += f" {NOTE} Trained by its authors on {'; '.join(told)}."
    if any(len(r.metadata.get("seeds", {})) > 1 for r in results.values()):
        caption += (
            " In parentheses the lowest and highest of several training seeds, of which the mean is shown."
        )
    for field, sentence in SAID.items():
        said = {system: result.metadata["config"].get(field) for system, result in results.items()}
        caption += "".join(f" {sentence.format(system, what)}" for system, what in said.items() if what)
    return caption


def summary_table(root: Path) -> str:
    """The README's first table: nDCG@10 of four systems on every collection, with published figures.

    Raises:
        FileNotFoundError: A collection has no run of one of the systems.
    """
    results = {name: {s: load_result(root / "runs" / name, s) for s in SUMMARY} for name in COLLECTIONS}
    lines = [f"| {COLUMNS[0]} | {' | '.join(COLLECTIONS.values())} |", f"|---|{'---:|' * len(COLLECTIONS)}"]
    for system, words in SUMMARY.items():
        cells = []
        for name in COLLECTIONS:
            full = results[name][system].metadata["scope"] == "full corpus"
            theirs = published(name, system) if full else None
            shown = f" (published {theirs.value:.4f})" if theirs else ""
            seen = answers_seen(system, results[name])
            shown += f" ({seen:.0%} seen)" if seen is not None else ""
            cells.append(f"{results[name][system].evaluation.means[COLUMNS[0]]:.4f}{shown}")
        lines.append(f"| {words} | {' | '.join(cells)} |")
    lines += ["", "Seen: test queries whose answer training showed; of those a gain may be memory."]
    for name, title in COLLECTIONS.items():
        if (root / "runs" / name / f"{UNSHARED}.json").is_file():
            mean = load_result(root / "runs" / name, UNSHARED).evaluation.means[COLUMNS[0]]
            lines[-1] += f" Fine-tuned on queries that share no answer with the test: {mean:.4f} on {title}."
    return "\n".join(lines)


def smallest_provable(results: dict[str, Result], metric: str = "nDCG@10") -> dict[str, float]:
    """System other than the baseline → smallest true difference from it that the queries would show."""
    if BASELINE not in results or results[BASELINE].metadata["num_queries"] < 2:
        return {}
    base = results[BASELINE].evaluation.per_query[metric]
    return {
        system: smallest_difference(
            np.array([result.evaluation.per_query[metric][q] - base[q] for q in base])
        )
        for system, result in results.items()
        if system != BASELINE
    }


LEARN = {  # number of a notebook → what its reader learns
    "00": "tokens, masks, pooling, cosine, loss, run files and nDCG, each by hand",
    "01": "what a collection must be checked for before anything is measured",
    "02": "BM25's formula, tuning without the test queries",
    "03": "a training step by hand, schedules, memory, resuming, tracking",
    "04": "seeds, hard negatives, variants, and how to tell learning from memory",
    "05": "poolings, similarities, long documents, FAISS and hnswlib beside exact search",
    "06": "a language model as query writer, recitation, filters, expansion beside copying",
    "07": "fusion, significance, letters in a table, an evaluator checked by official scores",
    "08": "training data from nothing: written queries, filters, false negatives",
    "09": "cross-encoders: segment ids, heads and losses, reranking, distillation",
    "10": "the same on texts of your own, in ten lines and in full",
}
RENDERED = re.compile(r"^\*Rendered .*?in ([\d.]+) minutes on", re.MULTILINE)
COLAB = "https://colab.research.google.com"


class Rendered(NamedTuple):
    """What a committed notebook says about itself.

    Attributes:
        path: Its file.
        title: Its name, as words.
        question: The question it asks.
        minutes: What its execution took.
        colab: The address that opens it on Colab.
        source: The address of its file.
    """

    path: Path
    title: str
    question: str
    minutes: str
    colab: str
    source: str


def rendered_notebooks(root: Path) -> list[Rendered]:
    """What the notebooks of a repository say about themselves, by number.

    Raises:
        ValueError: A notebook lacks its question, its minutes or the repository's address.
    """
    found = []
    for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        sources = ["".join(cell["source"]) for cell in read_json(path, "cells")["cells"]]
        question = re.search(r"^\*\*Question\.\*\* (.+)$", sources[0], re.MULTILINE)
        minutes = RENDERED.search(sources[0])
        address = re.search(r'^REPOSITORY = "https://github.com/(.+?)"', "\n".join(sources), re.MULTILINE)
        if not (question and minutes and address):
            raise ValueError(f"{path}: lacks its question, its minutes or REPOSITORY")
        title, file = path.stem.replace("_", " ").replace("bm25", "BM25"), f"blob/main/notebooks/{path.name}"
        addresses = (
            f"{site}/{address.group(1)}/{file}" for site in (f"{COLAB}/github", "https://github.com")
        )
        found.append(Rendered(path, title, question.group(1), minutes.group(1), *addresses))
    return found


def notebooks_table(root: Path) -> str:
    """A markdown table of the notebooks: question, what one learns, minutes and a link to open it on Colab.

    Raises:
        ValueError: An error of `rendered_notebooks`, or a notebook has no line in `LEARN`.
    """
    lines = ["| notebook | question | you learn | minutes | |", "|---|---|---|---:|---|"]
    for path, title, question, minutes, colab, _ in rendered_notebooks(root):
        if path.name[:2] not in LEARN:
            raise ValueError(f"{path}: has no line in LEARN")
        lines.append(
            f"| [{title}](notebooks/{path.name}) | {question} | {LEARN[path.name[:2]]} "
            f"| {minutes} | [![Open in Colab]({COLAB}/assets/colab-badge.svg)]({colab}) |"
        )
    return "\n".join(lines)


def readme_sections(root: Path) -> dict[str, str]:
    """Marker → text to put between `<!-- marker:begin -->` and `<!-- marker:end -->` in the README."""
    tables = [f"### {title}\n\n{results_table(root / 'runs' / name)}" for name, title in COLLECTIONS.items()]
    return {
        "summary": summary_table(root),
        "notebooks": notebooks_table(root),
        "results": "\n\n".join(tables),
        "expected": expected_table("trec-covid"),
    }


def expected_table(collection: str) -> str:
    """A markdown table of the values that others published for a collection."""
    rows = [
        f"| {system} | {metric} | {theirs.value:.4f} | {theirs.source} |"
        for (name, system, metric), theirs in PUBLISHED.items()
        if name == collection
    ]
    return "\n".join(["| system | metric | published | source |", "|---|---|---:|---|", *rows])


def fill(readme: str, sections: dict[str, str]) -> str:
    """Replace the text between the markers of each section.

    Raises:
        ValueError: A marker is missing.
    """
    for marker, text in sections.items():
        begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(readme):
            raise ValueError(f"README.md has no markers {begin} … {end}")
        readme = pattern.sub(lambda _, t=f"{begin}\n{text}\n{end}": t, readme)
    return readme


def draw(root: Path) -> None:
    """Draw the README's figure: every system on every collection, with the published values."""
    from matplotlib.figure import Figure

    from dpr.experiments.plots import plot_systems

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, (name, title) in zip(
        np.atleast_1d(figure.subplots(1, len(COLLECTIONS))), COLLECTIONS.items(), strict=True
    ):
        results = load_results(root / "runs" / name)
        values = {s: np.array(list(r.evaluation.per_query["nDCG@10"].values())) for s, r in results.items()}
        full = [s for s, r in results.items() if r.metadata["scope"] == "full corpus"]
        theirs = {s: published(name, s).value for s in full if published(name, s)}
        plot_systems(values, theirs, "nDCG@10, mean and 95 % interval", title, axes)
    with atomic_path(root / FIGURE) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def main() -> None:
    """Fill the README's tables from runs/ and draw its figure."""
    sys.stdout.reconfigure(errors="replace")  # a terminal may know only ASCII
    root = project_root()
    readme = root / "README.md"
    try:
        text = fill(readme.read_text(encoding="utf-8"), readme_sections(root))
        draw(root)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    write_text(readme, text)
    print(f"wrote {readme.name} and {FIGURE}")


if __name__ == "__main__":
    main()
