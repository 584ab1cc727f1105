"""Figures: each has its axes named, shows the values it was given, and is small enough to commit."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from dpr.experiments.plots import (
    BLUE,
    COLOURS,
    RED,
    plot_ann,
    plot_bars,
    plot_by_number,
    plot_by_step,
    plot_differences,
    plot_length_by_rank,
    plot_loss_and_metric,
    plot_overfit,
    plot_plane,
    plot_systems,
    plot_token_lengths,
    plot_training,
    plot_tuning,
    plot_visibility,
)
from dpr.search.ann import AnnResult
from dpr.search.bm25 import Tuning

K1, B = (0.6, 0.9, 1.2), (0.2, 0.4)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tuning(best=(1.2, 0.2)):
    """A grid whose values tell where they belong: k1 + b, and 3 at the best."""
    grid = {(k1, b): k1 + b for k1 in K1 for b in B} | {best: 3.0}
    return Tuning(grid, "nDCG@10", *best, split="dev", num_queries=161)


def systems(rng):
    """Per-query values of two systems, best first."""
    return {"dense": rng.uniform(0.4, 1, size=30), "bm25": rng.uniform(0, 0.6, size=30)}


def ann_result(kind, recall, queries_per_s):
    """A measured setting that has this recall and speed."""
    return AnnResult(kind, {}, False, recall, 0.9, 0.6, 0.0, 1.0, 1536, queries_per_s, 1.0)


ANN = [ann_result("exact", 1.0, 100), ann_result("faiss-hnsw", 0.9, 400), ann_result("faiss-hnsw", 0.8, 300)]


def history(chance=True):
    """Two lines of training and two evaluations, with or without what chance would give."""
    train = [
        {"loss": 2.0, "learning_rate": 1e-5, "grad_norm": 3.0, "step": 1},
        {"loss": 1.0, "learning_rate": 2e-5, "grad_norm": 4.0, "step": 2},
    ]
    found = [
        {"eval_loss": 1.5, "eval_nDCG@10": 0.25, "step": 1},
        {"eval_loss": 1.4, "eval_nDCG@10": 0.5, "step": 2},
    ]
    if chance:
        train = [{**line, "chance_loss": 3.5} for line in train]
        found = [{**line, "eval_chance_loss": 2.5} for line in found]
    return [train[0], found[0], train[1], found[1]]


def every_figure(rng):
    """Name → a figure, one of each function, with as much in it as a notebook draws."""
    lengths = rng.poisson(200, size=100_000)
    ranks = {"bm25": rng.uniform(100, 300, size=20), "dense": rng.uniform(100, 300, size=20)}
    grid = {(k1 / 10, b / 10): k1 * b for k1 in range(6, 12) for b in range(2, 7)}
    return {
        "token lengths": plot_token_lengths(lengths, 256, "The answer"),
        "tuning": plot_tuning(Tuning(grid, "nDCG@10", 1.1, 0.6, "dev", 9), (0.9, 0.4), "The answer"),
        "differences": plot_differences(rng.normal(size=648), "nDCG@10", "The answer"),
        "length by rank": plot_length_by_rank(ranks, 180, 220, "The answer"),
        "approximate": plot_ann(ANN * 9, "The answer"),
        "overfit": plot_overfit({"right": [2.0, 0.1], "broken": [2.0, 2.0]}, 2.1, 0.04, "The answer"),
        "training": plot_training(history(), "nDCG@10", "The answer"),
        "loss and metric": plot_loss_and_metric({"a": history(), "b": history()}, "nDCG@10", "The answer"),
        "by number": plot_by_number(
            {"a": {1: 0.3, 5: 0.4}}, 0.3, "queries a passage", "nDCG@10", "The answer"
        ),
        "by step": plot_by_step({"a": {1: 0.5, 2: 0.4}}, "loss", "The answer", {"b": {2: 0.4}}),
        "systems": plot_systems(systems(rng), {"bm25": 0.3}, "nDCG@10", "The answer"),
        "plane": plot_plane({"query": (0.8, 0.6), "long": (-2.0, 0.0)}, "The answer"),
        "bars": plot_bars({"dense": 0.6, "bm25": 0.5}, "nDCG@10", "The answer"),
        "visibility": plot_visibility({"causal": (np.tri(3) > 0, "abc", "abc")}, "The answer"),
    }


@pytest.mark.parametrize("name", [*every_figure(np.random.default_rng(0))])
def test_a_figure_has_a_title_named_axes_and_a_small_png(rng, name):
    figure = every_figure(rng)[name]
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    assert (axes.get_title() or axes.get_title(loc="left") or figure.get_suptitle()) == "The answer"
    assert axes.get_xlabel()
    assert axes.get_ylabel() or [label.get_text() for label in axes.get_yticklabels()] == ["bm25", "dense"]
    png = figure._repr_png_()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert 1_000 < len(png) < 30_000
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    images = (Image.open(io.BytesIO(found)).convert("RGB") for found in (png, stream.getvalue()))
    ours, whole = (np.asarray(image, int) for image in images)
    assert ours.shape == whole.shape
    assert np.abs(ours - whole).mean() < 1  # of 255


def test_pyplot_holds_on_to_no_figure(rng):
    import matplotlib.pyplot as plt

    every_figure(rng)
    assert plt.get_fignums() == []


def bars(axes, colour):
    """The bars of one colour."""
    return [patch for patch in axes.patches if to_hex(patch.get_facecolor()) == colour]


# --- one by one --------------------------------------------------------------------------------


def test_every_document_is_in_the_histogram_and_the_cut_is_marked():
    lengths = np.array([10] * 7 + [300] * 990 + [100_000] * 3)  # the longest are drawn in the last bar
    axes = plot_token_lengths(lengths, 256, "title").axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 1000
    assert axes.get_xlim()[1] < 1_000
    assert [set(line.get_xdata()) for line in axes.lines] == [{256}]
    assert axes.get_legend().get_texts()[0].get_text() == "cut at 256"


def test_each_cell_of_the_heat_map_is_where_its_k1_and_b_are():
    figure = plot_tuning(tuning(), (0.9, 0.4), "title")
    axes, colour_bar = figure.axes
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 1.1, 3.0], [1.0, 1.3, 1.6]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.6", "0.9", "1.2"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.2", "0.4"]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown[2, 0] == "3.000"
    assert shown[0, 1] == "1.000"
    assert colour_bar.get_ylabel() == "nDCG@10, 161 dev queries"
    framed = {patch.get_label(): patch.get_xy() for patch in axes.patches}
    assert framed == {"best on dev": (1.5, -0.5), "default": (0.5, 0.5)}


def test_a_default_outside_of_the_grid_is_not_framed():
    axes = plot_tuning(tuning(), (1.0, 0.4), "title").axes[0]
    assert [patch.get_label() for patch in axes.patches] == ["best on dev"]


def test_differences_are_sorted_and_coloured_by_sign_with_their_mean():
    axes = plot_differences([0.1, -0.4, 0.6, 0.0], "RR@10", "title").axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0.6, 0.1, 0.0, -0.4]
    assert (len(bars(axes, BLUE)), len(bars(axes, RED))) == (3, 1)
    assert axes.get_ylabel() == "difference in RR@10"
    assert axes.lines[1].get_ydata() == pytest.approx([0.075, 0.075])
    assert axes.get_legend().get_texts()[0].get_text() == "mean +0.075"


def test_lengths_start_at_rank_one_beside_both_medians():
    by_rank = {"bm25": np.array([120.0, 130.0, np.nan]), "dense": np.array([90.0, 95.0, 99.0])}
    axes = plot_length_by_rank(by_rank, 180.0, 220.0, "title").axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["bm25", "dense", "all documents", "relevant documents"]
    for system, words in by_rank.items():
        np.testing.assert_array_equal(lines[system].get_xdata(), [1, 2, 3])
        np.testing.assert_array_equal(lines[system].get_ydata(), words)
    assert set(lines["all documents"].get_ydata()) == {180}
    assert set(lines["relevant documents"].get_ydata()) == {220}


def test_every_setting_is_a_point_and_the_line_joins_those_that_nothing_beats():
    axes = plot_ann(ANN, "title").axes[0]
    points = {dots.get_label(): dots.get_offsets().tolist() for dots in axes.collections}
    assert points == {"exact": [[1.0, 100.0]], "faiss-hnsw": [[0.9, 400.0], [0.8, 300.0]]}
    assert axes.lines[0].get_xydata().tolist() == [[0.9, 400.0], [1.0, 100.0]]
    assert axes.get_yscale() == "log"


def test_systems_are_drawn_from_the_top_with_their_means_and_intervals(rng):
    values = systems(rng)
    axes = plot_systems(values, {}, "nDCG@10", "title").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bm25", "dense"]  # from below
    means = [values[system].mean() for system in ("bm25", "dense")]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(means)
    assert [text.get_text() for text in axes.texts] == [f"{mean:.3f}" for mean in means]
    [intervals] = [c for c in axes.collections if len(c.get_segments()) == 2]
    for (left, right), system in zip(intervals.get_segments(), ("bm25", "dense"), strict=True):
        half = 1.96 * values[system].std(ddof=1) / np.sqrt(30)
        assert (left[0], right[0]) == pytest.approx(
            (values[system].mean() - half, values[system].mean() + half)
        )
    assert axes.get_xlim()[0] == 0


@pytest.mark.parametrize(
    ("published", "marked"),
    [({}, []), ({"bm25": 0.3}, [(0.3, 0)]), ({"dense": 0.8, "other": 0.5}, [(0.8, 1)])],
)
def test_a_published_figure_is_marked_exactly_where_there_is_one(rng, published, marked):
    axes = plot_systems(systems(rng), published, "nDCG@10", "title").axes[0]
    red = [line for line in axes.lines if line.get_color() == RED and len(line.get_xdata())]
    assert [(line.get_xdata()[0], np.mean(line.get_ydata())) for line in red] == marked
    legend = axes.get_legend()
    assert ([text.get_text() for text in legend.get_texts()] if legend else []) == ["published"] * bool(
        marked
    )


def test_systems_can_be_drawn_on_axes_of_another_figure(rng):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot_systems(systems(rng), {}, "RR@10", "on the right", right) is figure
    assert (left.get_title(), right.get_title(loc="left"), right.get_xlabel()) == (
        "",
        "on the right",
        "RR@10",
    )
    assert not left.patches
    assert len(right.patches) == 2


def drawn(axes):
    """Label → the values of each line that was drawn."""
    return {line.get_label(): line.get_ydata() for line in axes.get_lines()}


def test_training_is_drawn_in_four_panels_with_chance_where_it_is_known():
    losses, metric, rate, norm = plot_training(history(), "nDCG@10", "A run").axes
    lines = drawn(losses)
    assert [axes.get_yscale() for axes in (losses, metric, rate, norm)] == ["log", *["linear"] * 3]
    assert list(lines["training"]) == [2.0, 1.0]
    assert list(lines["validation"]) == [1.5, 1.4]
    assert set(lines["chance in training"]) == {3.5}
    assert set(lines["chance in validation"]) == {2.5}
    assert list(drawn(metric)["nDCG@10"]) == [0.25, 0.5]
    assert list(drawn(rate)["learning rate"]) == [1e-5, 2e-5]
    assert list(drawn(norm)["gradient norm"]) == [3.0, 4.0]
    assert set(drawn(plot_training(history(chance=False), "nDCG@10", "A run").axes[0])) == {
        "training",
        "validation",
    }


def test_each_evaluation_of_each_training_is_a_point_of_loss_and_metric_and_the_last_a_star():
    other = [
        {**line, "eval_loss": 0.5, "eval_nDCG@10": 0.75} if "eval_loss" in line else line
        for line in history()
    ]
    [axes] = plot_loss_and_metric({"a": history(), "b": other}, "nDCG@10", "Both").axes
    first, first_star, second, second_star = axes.get_lines()
    assert first.get_xydata().tolist() == [[1.5, 0.25], [1.4, 0.5]]
    assert second.get_xydata().tolist() == [[0.5, 0.75]] * 2
    assert first_star.get_xydata().tolist() == [[1.4, 0.5]]
    assert second_star.get_xydata().tolist() == [[0.5, 0.75]]
    for line, star in ((first, first_star), (second, second_star)):
        assert (line.get_marker(), star.get_marker()) == ("o", "*")
        assert star.get_markersize() > line.get_markersize()
        assert star.get_color() == line.get_color()
    assert first.get_color() != second.get_color()
    [legend] = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "a",
        "b",
    ]  # no line for a star
    assert not axes.texts


def test_overfitting_shows_every_variant_with_chance_and_the_bound():
    [axes] = plot_overfit({"right": [2.0, 0.1], "broken": [2.0, 2.5]}, 2.1, 0.04, "Memory").axes
    lines = drawn(axes)
    assert list(lines["right"]) == [2.0, 0.1]
    assert list(lines["broken"]) == [2.0, 2.5]
    assert axes.get_yscale() == "log"
    assert {2.1, 0.04} <= {float(values[0]) for values in lines.values()}


def test_a_curve_over_a_number_has_the_value_to_compare_with_under_the_name_given():
    curves = {"a": {1: 0.3, 5: 0.4}}
    lines = drawn(plot_by_number(curves, 0.25, "queries", "nDCG@10", "More").axes[0])
    assert list(lines["a"]) == [0.3, 0.4]
    assert set(lines["without"]) == {0.25}
    lines = drawn(plot_by_number(curves, 0.25, "tokens", "nDCG@10", "Longer", "in chunks").axes[0])
    assert set(lines["in chunks"]) == {0.25}
    assert "without" not in lines


NUM_COLOURS = len(COLOURS)
MANY = [f"series {n}" for n in range(NUM_COLOURS + 3)]  # more than there are colours


def names_drawn(figure):
    """The labels of the lines and dots of a figure's first panel."""
    axes = figure.axes[0]
    return {artist.get_label() for artist in (*axes.get_lines(), *axes.collections)}


@pytest.mark.parametrize(
    "figure",
    [
        plot_length_by_rank(dict.fromkeys(MANY, np.array([1.0, 2.0])), 1.0, 2.0, "title"),
        plot_ann([ann_result(name, 0.9, 100) for name in MANY], "title"),
        plot_overfit(dict.fromkeys(MANY, (2.0, 1.0)), 2.1, 0.04, "title"),
        plot_by_number({name: {1: 0.3, 5: 0.4} for name in MANY}, 0.25, "queries", "nDCG@10", "title"),
        plot_loss_and_metric({name: history() for name in MANY}, "nDCG@10", "title"),
        plot_by_step({n: {1: 0.3} for n in MANY}, "loss", "title", {f"{n} too": {1: 0.3} for n in MANY}),
    ],
    ids=["length by rank", "approximate", "overfit", "by number", "loss and metric", "by step"],
)
def test_more_series_than_colours_are_all_drawn(figure):
    shown = names_drawn(figure)
    assert set(MANY) <= shown
    assert "series 0 too" not in shown or {f"{name} too" for name in MANY} <= shown
    colours = [to_hex(line.get_color()) for line in figure.axes[0].get_lines() if line.get_label() in MANY]
    colours = colours or [to_hex(dots.get_facecolors()[0]) for dots in figure.axes[0].collections]
    assert len(set(colours)) >= NUM_COLOURS


def test_more_arrows_than_colours_are_all_drawn():
    [axes] = plot_plane({name: (1.0, n / 10) for n, name in enumerate(MANY)}, "title").axes
    assert {text.get_text() for text in axes.texts} == set(MANY)
    assert len(axes.collections) == len(MANY)


def test_no_two_colours_are_alike():
    assert len({to_hex(colour) for colour in COLOURS}) == len(COLOURS)


def test_curves_by_step_have_rings_on_the_steps_of_the_points_in_their_colours():
    lines = {"a": {1: 0.3, 2: 0.1}, "b": {1: 0.2, 3: 0.4}}
    [axes] = plot_by_step(lines, "loss", "Falls", {"c": {2: 0.1}, "d": {3: 0.4, 4: 0.5}}).axes
    shown = {line.get_label(): dict(line.get_xydata().tolist()) for line in axes.get_lines()}
    assert shown == lines
    rings = {dots.get_label(): dict(dots.get_offsets().tolist()) for dots in axes.collections}
    assert rings == {"c": {2: 0.1}, "d": {3: 0.4, 4: 0.5}}
    colours = [to_hex(dots.get_edgecolors()[0]) for dots in axes.collections]
    assert colours == [line.get_color() for line in axes.get_lines()] == [BLUE, RED]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss")


def test_curves_by_step_need_no_points():
    [axes] = plot_by_step({"a": {1: 0.3}}, "loss", "Falls").axes
    assert not axes.collections


def test_vectors_are_arrows_to_their_ends_with_the_longest_below_and_the_circle_of_length_one():
    [axes] = plot_plane({"query": (0.8, 0.6), "long": (-2.0, 0.5)}, "title").axes
    arrows = [(*arrow.XY[0], arrow.U[0], arrow.V[0]) for arrow in axes.collections]
    assert arrows == [(0, 0, -2.0, 0.5), (0, 0, 0.8, 0.6)]
    assert {arrow.scale for arrow in axes.collections} == {1}  # in the units of the axes
    assert {text.get_text(): text.xy for text in axes.texts} == {"query": (0.8, 0.6), "long": (-2.0, 0.5)}
    colours = [to_hex(arrow.get_facecolors()[0]) for arrow in axes.collections]
    assert colours == [text.get_color() for text in axes.texts] == [RED, BLUE]
    [circle] = axes.get_lines()
    np.testing.assert_allclose(np.hypot(*circle.get_xydata().T), 1)
    assert axes.get_xlim()[0] < -2 < 1 < axes.get_xlim()[1]
    assert axes.get_aspect() == 1


def test_bars_are_drawn_from_the_top_with_their_values_and_the_best_is_blue():
    [axes] = plot_bars({"a": 0.25, "b": 0.5, "c": 0.125}, "nDCG@10", "title").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "b", "a"]  # from below
    assert [bar.get_width() for bar in axes.patches] == [0.125, 0.5, 0.25]
    assert [text.get_text() for text in axes.texts] == [" 0.125", " 0.500", " 0.250"]
    assert [bar.get_width() for bar in bars(axes, BLUE)] == [0.5]


def test_who_sees_whom_is_drawn_with_outputs_down_and_tokens_across():
    cross = np.array([[True, False, True], [False, True, True]])
    figure = plot_visibility({"causal": (np.tri(2) > 0, "xy", "xy"), "cross": (cross, "xy", "abc")}, "title")
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["causal", "cross"]
    axes = figure.axes[1]
    np.testing.assert_array_equal(axes.collections[0].get_array().reshape(2, 3), cross)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "y"]
    assert axes.yaxis_inverted()  # the first output is on top
