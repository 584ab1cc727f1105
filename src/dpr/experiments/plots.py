"""The figures of the notebooks and the README; each function draws one figure and returns it."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from dpr.search.ann import AnnResult, pareto
from dpr.search.bm25 import Tuning

SIZE = (6.0, 3.5)  # inches
BLUE, GREY, RED = "#3b6ea5", "#8a8a8a", "#c0504d"
COLOURS = (BLUE, RED, "#5a9e6f", "#8064a2", "#d99a3d", "#4bacc6", "#7f5f3f", "#e07ba8", "#222222", "#9bbb59")


class Plot(Figure):
    """A figure that notebooks show as PNG with any backend and that pyplot does not keep in memory."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=100)
        return with_palette(stream.getvalue())


def with_palette(png: bytes) -> bytes:
    """Reduce a picture to at most 128 colours: a quarter of the bytes in the committed notebooks."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(stream, "PNG")
    return stream.getvalue()


def _axes(title: str, xlabel: str, ylabel: str, size=SIZE):
    """Make a figure with one set of axes."""
    figure = Plot(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_token_lengths(lengths: np.ndarray, max_length: int, title: str) -> Plot:
    """Histogram of document lengths in tokens, int [N], with a line where documents are cut."""
    figure, axes = _axes(title, "tokens in a document", "documents")
    axes.hist(np.minimum(lengths, np.percentile(lengths, 99.5)), bins=50, color=BLUE)
    axes.axvline(max_length, color=RED, label=f"cut at {max_length}")
    axes.legend(frameon=False)
    return figure


def plot_tuning(tuning: Tuning, default: tuple[float, float], title: str) -> Plot:
    """Heat map of the metric by k1 and b, with frames around the best and the default setting."""
    values = {pair: tuning.grid[pair] for pair in sorted(tuning.grid)}
    frames = ((default, GREY, "default"), ((tuning.k1, tuning.b), RED, "best on dev"))
    label = f"{tuning.metric}, {tuning.num_queries} {tuning.split} queries"
    return _heat_map(values, ("k1", "b"), frames, label, title)


def plot_grid(
    values: Mapping[tuple[Any, Any], float], settings: tuple[str, str], label: str, title: str
) -> Plot:
    """Heat map of a metric by two settings, with a frame around the best cell.

    Args:
        values: (value of the first setting, of the second) → metric; a pair that is missing stays empty.
        settings: Names of the two: the first goes from left to right, the second upwards, as given.
        label: What the colours mean, such as `nDCG@10, 100 dev queries`.
        title: The figure's title.

    Raises:
        ValueError: No values.
    """
    if not values:
        raise ValueError("a heat map needs values, as Grid.pairs gives them; there are none")
    best = max(values, key=values.__getitem__)
    return _heat_map(values, settings, [(best, RED, "best")], label, title)


def _heat_map(values, settings, frames, label: str, title: str) -> Plot:
    """Cells (x, y) → value, coloured and written out, with frames (cell, colour, name) around some."""
    columns, rows = (list(dict.fromkeys(pair[side] for pair in values)) for side in (0, 1))
    grid = np.array([[values.get((x, y), np.nan) for x in columns] for y in rows])
    figure, axes = _axes(title, *settings)
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap="Blues")
    axes.set_xticks(range(len(columns)), map(str, columns))
    axes.set_yticks(range(len(rows)), map(str, rows))
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (x, y), value in values.items():
        at = {"ha": "center", "va": "center", "color": "white" if value > middle else "black"}
        axes.text(columns.index(x), rows.index(y), f"{value:.3f}", fontsize=8, **at)
    for (x, y), colour, name in frames:
        if x in columns and y in rows:
            corner = (columns.index(x) - 0.5, rows.index(y) - 0.5)
            axes.add_patch(_frame(corner, colour, name))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.colorbar(image, label=label, pad=0.02)
    return figure


def _frame(corner, colour: str, label: str):
    """The frame of one cell of the heat map."""
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=2.5, label=label)


def plot_differences(differences: Sequence[float], metric: str, title: str) -> Plot:
    """Sorted bars, one per query, float [Q]: how often and by how much one system beats the other."""
    figure, axes = _axes(title, "queries, sorted", f"difference in {metric}")
    values = np.sort(np.asarray(differences))[::-1]
    axes.bar(np.arange(len(values)), values, width=1.0, color=np.where(values >= 0, BLUE, RED))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(values.mean(), color=GREY, linestyle="--", label=f"mean {values.mean():+.3f}")
    axes.legend(frameon=False)
    return figure


def plot_length_by_rank(
    by_rank: Mapping[str, np.ndarray], collection_median: float, relevant_median: float, title: str
) -> Plot:
    """Median document length in words at each rank, float [depth] per system, with two medians to compare."""
    figure, axes = _axes(title, "rank", "median words in a document")
    for (system, words), colour in zip(by_rank.items(), cycle(COLOURS), strict=False):
        axes.plot(np.arange(1, len(words) + 1), words, marker="o", markersize=3, color=colour, label=system)
    axes.axhline(collection_median, color=GREY, linestyle="--", label="all documents")
    axes.axhline(relevant_median, color="black", linestyle=":", label="relevant documents")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def plot_ann(results: Sequence[AnnResult], title: str) -> Plot:
    """Speed by recall of every kind of index and setting, with exact search and the Pareto front."""
    figure, axes = _axes(title, "recall@10 against exact search", "queries a second, all at once")
    front = pareto(results)
    axes.plot([r.recall_10 for r in front], [r.queries_per_s for r in front], color="black", linewidth=0.8)
    kinds = dict.fromkeys(r.kind for r in results)
    for kind, colour in zip(kinds, cycle(("black", *COLOURS)), strict=False):
        rows = [r for r in results if r.kind == kind]
        axes.scatter(
            [r.recall_10 for r in rows],
            [r.queries_per_s for r in rows],
            color=colour,
            marker="*" if kind == "exact" else "o",
            s=120 if kind == "exact" else 22,
            label=kind,
            zorder=3,
        )
    axes.axvline(0.99, color=GREY, linestyle=":", linewidth=0.8)
    axes.set_yscale("log")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def plot_systems(
    values: Mapping[str, np.ndarray], published: Mapping[str, float], metric: str, title: str, axes=None
) -> Plot:
    """Mean of each system's per-query values, float [Q], with a 95 % interval and the published value.

    Args:
        values: System → per-query values, best system first.
        published: System → the value that others published, if there is one.
        metric: The metric's name, for the axis.
        title: What the figure shows, in words.
        axes: The axes to draw on; by default those of a new figure.

    Returns:
        The figure. The interval of a mean says how far a bar could move with other queries of the same
        kind. It does not say whether two systems differ, which needs a paired test.
    """
    figure = axes.figure if axes else None
    if axes is None:
        figure, axes = _axes("", metric, "")
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(metric)
    axes.spines[["top", "right"]].set_visible(False)
    systems = list(values)[::-1]
    means = [values[s].mean() for s in systems]
    errors = [1.96 * values[s].std(ddof=1) / np.sqrt(len(values[s])) for s in systems]
    axes.barh(systems, means, xerr=errors, color=BLUE, height=0.6, error_kw={"ecolor": GREY, "capsize": 3})
    for row, (system, mean) in enumerate(zip(systems, means, strict=True)):
        axes.text(0.01, row, f"{mean:.3f}", va="center", color="white", fontsize=9)
        if system in published:
            axes.plot([published[system]] * 2, [row - 0.4, row + 0.4], color=RED, linewidth=2)
    if any(system in published for system in systems):
        axes.plot([], [], color=RED, linewidth=2, label="published")
        axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    axes.set_xlim(left=0)
    return figure


def plot_overfit(losses: Mapping[str, Sequence[float]], chance: float, below: float, title: str) -> Plot:
    """Training loss by step, float [steps] per variant, with chance and the bound it must fall below."""
    figure, axes = _axes(title, "step", "training loss")
    for (name, values), colour in zip(losses.items(), cycle(COLOURS), strict=False):
        steps = np.arange(1, len(values) + 1)
        axes.plot(steps, np.maximum(values, 1e-5), color=colour, label=name, marker="o", markersize=3)
    axes.axhline(chance, color=GREY, linestyle="--", label=f"chance, ln B = {chance:.2f}")
    axes.axhline(below, color="black", linestyle=":", label=f"must fall below {below:.3f}")
    axes.set_yscale("log")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def plot_training(history: Sequence[Mapping[str, float]], metric: str, title: str) -> Plot:
    """Four panels by training step: losses, validation metric, learning rate and gradient norm.

    Args:
        history: The lines that a training logged; the loss of chance is drawn if they have it.
        metric: The validation metric to draw; the evaluations must have it.
        title: The figure's title.
    """
    figure = Plot(figsize=(8.0, 5.0), layout="constrained")
    figure.suptitle(title, fontsize=11)
    train = [line for line in history if "loss" in line]
    found = [line for line in history if "eval_loss" in line]
    panels = (
        ("loss", (("loss", train, "training"), ("eval_loss", found, "validation"))),
        (f"{metric} in validation", ((f"eval_{metric}", found, metric),)),
        ("learning rate", (("learning_rate", train, "learning rate"),)),
        ("gradient norm", (("grad_norm", train, "gradient norm"),)),
    )
    for axes, (ylabel, lines) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for (field, rows, label), colour in zip(lines, cycle(COLOURS), strict=False):
            values = [(row["step"], row[field]) for row in rows]
            axes.plot(*zip(*values, strict=True), color=colour, label=label, marker="o", markersize=2)
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        axes.spines[["top", "right"]].set_visible(False)
    panel = figure.axes[0]
    panel.set_yscale("log")  # else the lines of chance press the curves flat
    if "chance_loss" in train[0]:
        panel.axhline(train[0]["chance_loss"], color=GREY, linestyle="--", label="chance in training")
        panel.axhline(found[0]["eval_chance_loss"], color=GREY, linestyle=":", label="chance in validation")
    panel.legend(frameon=False, fontsize=7)
    return figure


def plot_by_number(
    curves: Mapping[str, Mapping[int, float]],
    baseline: float,
    xlabel: str,
    ylabel: str,
    title: str,
    baseline_label: str = "without",
) -> Plot:
    """One line per variant by a number such as queries per passage; `baseline` is a value to compare with."""
    figure, axes = _axes(title, xlabel, ylabel)
    for (name, values), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        axes.plot(list(values), list(values.values()), color=colour, marker="o", markersize=4, label=name)
    axes.axhline(baseline, color=GREY, linestyle="--", label=baseline_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def plot_loss_and_metric(
    histories: Mapping[str, Sequence[Mapping[str, float]]], metric: str, title: str
) -> Plot:
    """Validation metric by validation loss: a line for each training, a point for each evaluation.

    The last evaluation of each is a star.
    """
    figure, axes = _axes(title, "validation loss", f"{metric} in validation")
    for (name, history), colour in zip(histories.items(), cycle(COLOURS), strict=False):
        found = [line for line in history if "eval_loss" in line]
        losses, values = ([line[field] for line in found] for field in ("eval_loss", f"eval_{metric}"))
        axes.plot(losses, values, color=colour, marker="o", markersize=4, linewidth=0.8, label=name)
        axes.plot(losses[-1:], values[-1:], color=colour, marker="*", markersize=12)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def plot_plane(vectors: Mapping[str, Sequence[float]], title: str) -> Plot:
    """Vectors in two dimensions, float [2] each, as named arrows, with the circle of length 1."""
    figure, axes = _axes(title, "first value", "second value")
    turn = np.linspace(0, 2 * np.pi, 181)
    axes.plot(np.cos(turn), np.sin(turn), color=GREY, linestyle="--", linewidth=0.8, label="length 1")
    coloured = zip(vectors.items(), cycle(COLOURS), strict=False)
    for (name, (x, y)), colour in sorted(coloured, key=lambda arrow: -np.hypot(*arrow[0][1])):
        axes.quiver(0, 0, x, y, angles="xy", scale_units="xy", scale=1, width=0.006, color=colour)
        side, end = (-1 if x < 0 else 1), (-1 if y < 0 else 1)
        how = {"ha": "right" if side < 0 else "left", "va": "top" if end < 0 else "bottom", "color": colour}
        label = axes.annotate(name, (x, y), (4 * side, 2 * end), textcoords="offset points", **how)
        label.set_in_layout(False)  # else each drawing has another size
    axes.update_datalim([*vectors.values()])
    axes.margins(0.15)
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def plot_bars(values: Mapping[str, float], xlabel: str, title: str) -> Plot:
    """One bar a name, first name on top, with its value; the best in blue, the others in grey."""
    figure, axes = _axes(title, xlabel, "")
    names, best = list(values)[::-1], max(values.values())
    colours = [BLUE if values[name] == best else GREY for name in names]
    axes.barh(names, [values[name] for name in names], color=colours, height=0.7)
    for row, name in enumerate(names):
        axes.text(values[name], row, f" {values[name]:.3f}", va="center", fontsize=8)
    axes.set_xlim(0, best * 1.15)
    return figure


def plot_visibility(grids: Mapping[str, tuple[np.ndarray, Sequence[str], Sequence[str]]], title: str) -> Plot:
    """A panel for each model: a cell is dark where its row's output changes with its column's token.

    Args:
        grids: Name → grid, bool [R, C]; labels of its R rows; labels of its C columns.
        title: The figure's title.
    """
    figure = Plot(figsize=(6.0, 4.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for number, (name, (grid, rows, columns)) in enumerate(grids.items(), start=1):
        axes = figure.add_subplot(2, -(-len(grids) // 2), number)
        axes.pcolormesh(grid, cmap="Blues", vmin=0, vmax=1.4, edgecolors="lightgrey", linewidth=0.8)
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, fontsize=7, rotation=90)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=7)
        axes.set_xlabel("token exchanged", fontsize=7)
        axes.set_ylabel("output", fontsize=7)
        axes.text(0.5, 1.04, name, transform=axes.transAxes, ha="center", fontsize=9)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.set_aspect("equal")
    return figure


def plot_by_step(
    lines: Mapping[str, Mapping[int, float]],
    ylabel: str,
    title: str,
    points: Mapping[str, Mapping[int, float]] | None = None,
) -> Plot:
    """Curves by training step, each step → value, with rings on the steps of `points` in the same colours."""
    figure, axes = _axes(title, "step", ylabel)
    for (name, values), colour in zip(lines.items(), cycle(COLOURS), strict=False):
        axes.plot(list(values), list(values.values()), color=colour, label=name)
    for number, ((name, values), colour) in enumerate(
        zip((points or {}).items(), cycle(COLOURS), strict=False)
    ):
        how = {"facecolors": "none", "edgecolors": colour, "s": 30 + 40 * number, "zorder": 3}
        axes.scatter(list(values), list(values.values()), label=name, **how)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure
