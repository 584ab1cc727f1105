"""The page of results by system: sortable tables, and quality against speed."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from string import ascii_lowercase

from matplotlib.figure import Figure

from dpr.book.by_query import METRIC, over_the_same
from dpr.evaluation.significance import compare_per_query, superscripts
from dpr.experiments.plots import BLUE, GREY
from dpr.experiments.profiles import PROFILES, TRAINED_ON
from dpr.experiments.published import published
from dpr.experiments.report import BASELINE, answers_seen, smallest_provable
from dpr.experiments.results import Result
from dpr.files import atomic_path

BENCHMARKS = "https://github.com/dpr-notebooks/dpr/blob/main/benchmarks/README.md"
METRICS = (METRIC, "RR@10", "R@100")


def systems_section(results: Mapping[str, Result], title: str, figure: Path, sample: bool) -> str:
    """The part of the page on one collection, in markdown, with its figure drawn.

    Args:
        results: The systems' results, variants included; shown are those over the same as most are.
        title: The collection's name, as shown.
        figure: Where the figure is written, a file ending in .svg; the text refers to `figures/<its name>`.
        sample: Whether the runs are those of `make run`.
    """
    every = over_the_same(results)
    main = {system: result for system, result in every.items() if not result.metadata["ablation"]}
    variants = {system: result for system, result in every.items() if result.metadata["ablation"]}
    front, (machine, elsewhere) = draw_quality_by_speed(every, title, figure), timed_on(every)
    about = next(iter(every.values())).metadata
    said = ", ".join(f"{system} ({value:.4f}, {speed:.3g} queries/s)" for system, speed, value in front)
    lines = [
        f"## {title}",
        f"{about['num_queries']} {about['split']} queries, {about['scope']}.",
        ":::{container} sortable",
        *_main_table(main, every, sample),
        ":::",
        f"```{{figure}} figures/{figure.name}\n:alt: {METRIC} by queries a second on {title}; no system is "
        f"both better and faster than {said}\n\n{title}: quality by speed, as the notebooks took the time on "
        f"{machine}: encoding of the queries and search, of a merged system for all its parts. "
        + (f"Left out, as timed on another machine: {', '.join(elsewhere)}. " if elsewhere else "")
        + "Some ran beside other work, so a factor of two "
        f"between two systems says nothing; [benchmarks]({BENCHMARKS}) compare speeds with care.\n```",
    ]
    if variants:
        lines += [
            f"### {title}: variants",
            "Single seeds, and systems that differ in one setting, left out of the tables of the README.",
            ":::{container} sortable",
            *_variants_table(variants, sample),
            ":::",
        ]
    return "\n\n".join(lines)


def _main_table(main: Mapping[str, Result], every: Mapping[str, Result], sample: bool) -> list[str]:
    per_query = {system: result.evaluation.per_query[METRIC] for system, result in main.items()}
    few, several = len(main) <= len(ascii_lowercase), len(next(iter(per_query.values()))) > 1
    letters = superscripts(per_query) if few and several else dict.fromkeys(main, "")
    shows = smallest_provable(dict(main))
    tests = {}
    if BASELINE in main and len(main) > 1 and several:
        tests = {c.system: c for c in compare_per_query(per_query, BASELINE)}
    head = ["", "system", *METRICS, "seeds", f"published {METRIC}", f"less {BASELINE}", "p (Holm)"]
    head += ["would show", "answers seen", "trained and tuned on", "notebook", "made again by"]
    rows = []
    for number, (system, result) in enumerate(main.items()):
        letter = ascii_lowercase[number] if few else ""
        cells = [letter, f"`{system}`", *(f"{result.evaluation.means[m]:.4f}" for m in METRICS)]
        cells[2] += f" <sup>{letters[system]}</sup>" if letters[system] else ""
        seeds = [found[METRIC] for found in result.metadata.get("seeds", {}).values()]
        cells.append(f"{min(seeds):.4f} to {max(seeds):.4f}" if len(seeds) > 1 else "–")
        full = result.metadata["scope"] == "full corpus"
        theirs = published(result.collection, system) if full else None
        cells.append(f"{theirs.value:.4f}" if theirs else "–")
        test = tests.get(system)
        cells += [f"{test.difference:+.4f}", f"{test.p_value:.2g}"] if test else ["–", "–"]
        cells.append(f"{shows[system]:.4f}" if shows.get(system, 0) > 0 else "–")
        seen = answers_seen(system, every)
        cells += ["–" if seen is None else f"{seen:.0%}", _learnt_from(result), *_made(result, sample)]
        rows.append(cells)
    return _table(head, rows)


def _variants_table(variants: Mapping[str, Result], sample: bool) -> list[str]:
    rows = [
        [
            f"`{system}`",
            *(f"{result.evaluation.means[m]:.4f}" for m in METRICS),
            "–" if result.metadata["seed"] is None else str(result.metadata["seed"]),
            _learnt_from(result),
            *_made(result, sample),
        ]
        for system, result in variants.items()
    ]
    return _table(["system", *METRICS, "seed", "trained and tuned on", "notebook", "made again by"], rows)


def _learnt_from(result: Result) -> str:
    """What a system was made from and tuned on, in words."""
    config = result.metadata["config"]
    told = {"starts_from": "from {}", "trained_on": "trained on {}", "tuned_on": "tuned on {}"}
    told |= {"written_by": "queries by {}"}
    by_authors = next((n for n in (result.system, config.get("starts_from")) if n in TRAINED_ON), None)
    parts = [f"{by_authors}: by its authors on {TRAINED_ON[by_authors]}"] if by_authors else []
    parts += [words.format(config[field]) for field, words in told.items() if config.get(field)]
    if config.get("runs"):
        parts.append("merges " + " and ".join(config["runs"]))
    return "; ".join(parts) or "–"


def _made(result: Result, sample: bool) -> list[str]:
    """The cells with the notebook's chapter and the command that makes the run again."""
    notebook, name = result.metadata["notebook"], result.collection
    profile = next((p.name for p in PROFILES.values() if p.larger == name), name)
    what = "run --profile sample" if sample else f"runs --profile {profile}"
    command = f"`python -m dpr.experiments.notebooks {what} --only {notebook[:2]}`"
    return [f"[{notebook[:2]}](notebooks/{notebook}.ipynb)", command]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A markdown table, as one paragraph."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return ["\n".join(lines)]


def _parts(result: Result) -> list[str]:
    """The systems that a system merges or reranks."""
    config = result.metadata["config"]
    return config.get("runs") or ([config["first"]] if "first" in config else [])


def timed_on(results: Mapping[str, Result]) -> tuple[str, list[str]]:
    """The hardware that most systems were timed on, and those that were timed elsewhere, in whole or in part.

    Args:
        results: System → result, variants included, as those are parts of others.

    Returns:
        The hardware, as `hardware()` names it, and the names of the systems timed elsewhere.
    """

    def machines(system: str) -> set[str]:
        result = results[system]
        return {result.metadata["hardware"]}.union(*(machines(p) for p in _parts(result) if p in results))

    main = {s: machines(s) for s, result in results.items() if not result.metadata["ablation"]}
    usual = Counter(results[system].metadata["hardware"] for system in main).most_common(1)[0][0]
    return usual, [system for system, found in main.items() if found != {usual}]


def queries_a_second(system: str, results: Mapping[str, Result]) -> float | None:
    """Queries a second of a system, with the time of what it merges or reranks; None if that is not known."""
    metadata = results[system].metadata
    seconds = metadata["wall_s"]
    for part in _parts(results[system]):
        speed = queries_a_second(part, results) if part in results else None
        if speed is None:
            return None
        seconds += metadata["num_queries"] / speed
    return metadata["num_queries"] / seconds if seconds > 0 else None


def draw_quality_by_speed(
    results: Mapping[str, Result], title: str, path: Path
) -> list[tuple[str, float, float]]:
    """Draw the metric of every system that `timed_on` keeps, variants aside, by queries a second.

    Args:
        results: System → result, variants included, as those are parts of others.
        title: The collection's name, as shown.
        path: The file to write, ending in .svg.

    Returns:
        The systems that none is both better and faster than, fastest first: name, queries a second, metric.
    """
    _, elsewhere = timed_on(results)
    main = [s for s, r in results.items() if not r.metadata["ablation"] and s not in elsewhere]
    speeds = {s: queries_a_second(s, results) for s in main}
    points = [(s, speed, results[s].evaluation.means[METRIC]) for s, speed in speeds.items() if speed]
    front, best = [], -1.0
    for point in sorted(points, key=lambda p: (-p[1], -p[2])):
        if point[2] > best:
            front.append(point)
            best = point[2]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", xlabel="queries a second", ylabel=METRIC, title=f"{title}: quality by speed")
    axes.spines[["top", "right"]].set_visible(False)
    axes.plot([p[1] for p in front], [p[2] for p in front], color=BLUE, drawstyle="steps-post", alpha=0.5)
    for system, speed, value in points:
        on_front = any(system == p[0] for p in front)
        axes.plot(speed, value, "o", color=BLUE if on_front else GREY)
        where = {"textcoords": "offset points", "xytext": (5, 4), "fontsize": 8}
        axes.annotate(system, (speed, value), color="black" if on_front else GREY, **where)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    return front
