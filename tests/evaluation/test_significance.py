"""Significance: p-values against all sign patterns, power against simulation, fusion against a loop."""

import math
import random
from itertools import pairwise, product
from re import escape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dpr.evaluation.metrics import evaluate
from dpr.evaluation.significance import (
    Comparison,
    compare,
    compare_per_query,
    holm,
    randomisation_test,
    smallest_difference,
    superscripts,
)

# Quarters add up without rounding, so equal sums are equal.
quarters = st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=2, max_size=9)
p_lists = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.02, 1.0])), max_size=8)


def p_of_all_sign_patterns(differences):
    """The share of all sign patterns whose sum is as far from zero as the one that was seen."""
    seen = abs(sum(differences))
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(abs(value) >= seen for value in sums) / len(sums)


def monte_carlo_error(p, num_permutations):
    """Five standard errors of an estimated share; an estimate from twice one tail has √2 of a plain one's."""
    return 5 * math.sqrt(2 * p * (1 - p) / num_permutations)


# --- randomisation_test ------------------------------------------------------------------------


@given(quarters)
def test_with_few_queries_p_is_that_of_all_sign_patterns(differences):
    assert randomisation_test(np.array(differences)) == p_of_all_sign_patterns(differences)


def test_sixteen_queries_still_go_through_all_sign_patterns():
    differences = np.array([3, -1, 2, 2, 0, 1, -2, 4, 1, 1, -3, 2, 0, 1, 2, -1])
    signs = np.array(list(product((1, -1), repeat=16)))  # [2^16, 16]
    expected = np.mean(np.abs(signs @ differences) >= differences.sum())
    assert randomisation_test(differences) == expected
    assert randomisation_test(differences, seed=1) == expected


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.1])
def test_with_many_queries_p_is_that_of_a_plain_loop_over_random_signs(shift):
    rng = random.Random(7)
    differences = [rng.gauss(shift, 0.3) for _ in range(60)]
    seen, patterns = abs(sum(differences)), 10_000
    as_far = sum(
        abs(sum(d if rng.random() < 0.5 else -d for d in differences)) >= seen for _ in range(patterns)
    )
    expected = as_far / patterns
    found = randomisation_test(np.array(differences))
    assert found == pytest.approx(expected, abs=monte_carlo_error(found, patterns))


def test_with_many_queries_p_is_that_of_ranx():
    from ranx.statistical_tests import fisher_randomization_test

    rng = np.random.default_rng(3)
    for shift in (0.02, 0.06, 0.12):
        control = rng.uniform(size=50)
        treatment = control + rng.normal(shift, 0.25, size=50)
        theirs, _ = fisher_randomization_test(control, treatment, n_permutations=20_000)
        ours = randomisation_test(treatment - control)
        assert ours == pytest.approx(theirs, abs=monte_carlo_error(ours, 20_000))


@given(quarters)
def test_the_sign_of_the_differences_does_not_matter(differences):
    differences = np.array(differences)
    assert randomisation_test(differences) == randomisation_test(-differences)


def test_the_sign_does_not_matter_with_random_patterns_either():
    differences = np.random.default_rng(0).normal(0.1, 0.4, size=40)
    p, mirrored = randomisation_test(differences), randomisation_test(-differences)
    assert p == pytest.approx(mirrored, abs=2 * monte_carlo_error(p, 100_000))


@pytest.mark.parametrize("num_queries", [2, 50])
def test_identical_systems_have_a_p_of_one(num_queries):
    assert randomisation_test(np.zeros(num_queries)) == 1.0


@pytest.mark.parametrize("num_queries", [10, 40, 300])
@pytest.mark.parametrize("ties", [False, True])
def test_p_is_that_of_scipy_to_the_last_digit(num_queries, ties):
    rng = np.random.default_rng(num_queries)
    shape = (num_queries, 3)
    differences = rng.integers(-2, 3, shape) / 4 if ties else rng.standard_normal(shape)
    expected = stats.permutation_test(
        (differences,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=100_000,
        batch=1_500_000 // differences.size,
        rng=np.random.default_rng(7),
        axis=0,
    ).pvalue
    np.testing.assert_array_equal(randomisation_test(differences, seed=7), expected)


def test_a_seed_gives_the_same_p_again_and_another_seed_another():
    differences = np.random.default_rng(1).normal(0.05, 0.3, size=100)
    first = randomisation_test(differences, seed=5)
    assert randomisation_test(differences, seed=5) == first
    assert randomisation_test(differences, seed=6) != first
    assert randomisation_test(differences, seed=6) == pytest.approx(first, abs=0.01)


def test_p_is_never_zero_however_large_the_difference():
    assert 0 < randomisation_test(np.ones(40)) <= 2 / 100_001


# --- holm --------------------------------------------------------------------------------------


def test_holm_gives_what_is_worked_out_by_hand():
    # ranked: 0.005·4 = 0.02, 0.01·3 = 0.03, 0.03·2 = 0.06, and 0.04·1 is raised to 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.5]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(p_lists)
def test_holm_gives_what_a_loop_over_the_definition_gives(p_values):
    corrected, highest = dict.fromkeys(range(len(p_values))), 0.0
    for step, place in enumerate(sorted(corrected, key=lambda i: p_values[i])):
        highest = max(highest, (len(p_values) - step) * p_values[place])
        corrected[place] = min(1.0, highest)
    assert holm(p_values) == pytest.approx([corrected[i] for i in range(len(p_values))], abs=1e-15)


@given(p_lists)
def test_a_corrected_p_is_no_smaller_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    by_p = sorted(zip(p_values, corrected, strict=True))
    assert all(a[1] <= b[1] for a, b in pairwise(by_p))


# --- smallest_difference -----------------------------------------------------------------------


@pytest.mark.parametrize("num_queries", [3, 12, 40])
def test_a_true_difference_of_this_size_is_found_four_times_in_five(num_queries):
    rng = np.random.default_rng(num_queries)
    spread = rng.normal(size=num_queries)
    spread *= 0.3 / spread.std(ddof=1)
    for level in (0.05, 0.01):
        shift = smallest_difference(spread, level)
        p_values = stats.ttest_1samp(rng.normal(shift, 0.3, size=(20_000, num_queries)), 0, axis=1).pvalue
        assert np.mean(p_values <= level) == pytest.approx(0.8, abs=0.02)
    assert smallest_difference(spread) == smallest_difference(spread, 0.01)


@pytest.mark.parametrize(("num_queries", "tolerance"), [(300, 0.01), (50_000, 0.0001)])
def test_with_many_queries_it_is_the_textbooks_normal_approximation(num_queries, tolerance):
    differences = np.tile([0.5, -0.1], num_queries // 2)
    expected = (2.575829 + 0.841621) * differences.std(ddof=1) / math.sqrt(num_queries)
    assert smallest_difference(differences) == pytest.approx(expected, rel=tolerance)


def test_the_spread_and_the_number_of_queries_decide_and_the_mean_does_not():
    differences = np.array([0.1, -0.3, 0.2, 0.0, 0.4])
    smallest = smallest_difference(differences)
    assert smallest_difference(differences + 7) == pytest.approx(smallest)
    assert smallest_difference(-3 * differences) == pytest.approx(3 * smallest)
    assert smallest_difference(np.tile(differences, 4)) < smallest / 2
    assert smallest_difference(np.full(5, 0.25)) == 0.0


@pytest.mark.parametrize("differences", [[], [0.1]])
def test_a_spread_needs_two_queries(differences):
    with pytest.raises(ValueError, match=f"at least 2 queries, got {len(differences)}"):
        smallest_difference(np.array(differences))


# --- compare -----------------------------------------------------------------------------------


def with_first_relevant_at(*ranks):
    """A run in which query i has its one relevant document, r, at the i-th rank; None leaves it out."""
    run = {}
    for number, rank in enumerate(ranks):
        docs = [f"x{place}" for place in range(3)]
        if rank:
            docs.insert(rank - 1, "r")
        run[f"q{number}"] = {doc_id: -float(place) for place, doc_id in enumerate(docs)}
    return run


QRELS = {f"q{number}": {"r": 1} for number in range(8)}


def test_a_comparison_counts_wins_and_losses_and_corrects_for_their_number():
    runs = {
        "always": with_first_relevant_at(*[1] * 8),
        "base": with_first_relevant_at(*[2] * 8),
        "mixed": with_first_relevant_at(1, 1, 1, 2, 2, 2, 2, None),
    }
    always, mixed = compare(QRELS, runs, "base", "RR@10", level=0.02)
    assert always == Comparison(
        system="always",
        metric="RR@10",
        mean=1.0,
        difference=0.5,
        p_value=2 * 2 / 2**8,  # two of the 2^8 sign patterns are as far out; two tests
        significant=True,
        smallest_difference=0.0,
        wins=8,
        losses=0,
    )
    assert (mixed.system, mixed.wins, mixed.losses) == ("mixed", 3, 1)
    assert mixed.mean == pytest.approx((3 * 1 + 4 * 0.5) / 8)
    assert mixed.difference == pytest.approx(0.125)
    # 3 wins and 1 loss by 0.5: 10 of the 16 patterns of these four signs have a sum of ±1 or more
    assert mixed.p_value == 10 / 16
    assert not mixed.significant
    assert mixed.smallest_difference == pytest.approx(
        smallest_difference(np.array([0.5] * 3 + [0] * 4 + [-0.5]), 0.02)
    )


def test_a_difference_is_marked_up_to_the_level_itself():
    runs = {"base": with_first_relevant_at(*[2] * 8), "always": with_first_relevant_at(*[1] * 8)}
    p = 2 / 2**8
    for level, marked in ((p, True), (p - 1e-9, False), (0.01, True)):
        [comparison] = compare(QRELS, runs, "base", "RR@10", level=level)
        assert comparison.p_value == p
        assert comparison.significant is marked
    assert compare(QRELS, runs, "base", "RR@10")[0].significant is True  # 0.01 by default


def test_a_query_that_a_run_misses_counts_as_zero_in_the_comparison():
    base = with_first_relevant_at(*[2] * 8)
    missing = {query_id: base[query_id] for query_id in ("q0", "q1")}
    [comparison] = compare(QRELS, {"base": base, "missing": missing}, "base", "RR@10")
    assert comparison.mean == 0.125
    assert (comparison.wins, comparison.losses) == (0, 6)


def test_the_metric_that_is_compared_is_ndcg_at_10_unless_another_is_named():
    runs = {"base": with_first_relevant_at(*[2] * 8), "other": with_first_relevant_at(1, *[3] * 7)}
    [comparison] = compare(QRELS, runs, "base")
    assert comparison.metric == "nDCG@10"
    assert comparison.mean == pytest.approx(evaluate(QRELS, runs["other"], ["nDCG@10"]).means["nDCG@10"])


def test_comparisons_come_in_the_order_of_the_runs_and_a_seed_repeats_them():
    qrels = {f"q{number}": {"r": 1} for number in range(30)}
    rng = random.Random(0)
    runs = {
        name: with_first_relevant_at(*(rng.choice([1, 2, 3, None]) for _ in range(30)))
        for name in ("z", "b", "base", "a")
    }
    first = compare(qrels, runs, "base", "RR@10", seed=1)
    assert [comparison.system for comparison in first] == ["z", "b", "a"]
    assert compare(qrels, runs, "base", "RR@10", seed=1) == first
    assert compare(qrels, runs, "base", "RR@10", seed=2) != first


@pytest.mark.parametrize("baseline", ["gone", "base"])
def test_a_baseline_needs_to_be_there_and_to_have_something_beside_it(baseline):
    run = with_first_relevant_at(*[1] * 8)
    runs = {"base": run, "other": run} if baseline == "gone" else {"base": run}
    message = f"baseline {baseline!r} and at least one other run are needed, got {sorted(runs)}"
    with pytest.raises(ValueError, match=escape(message)):
        compare(QRELS, runs, baseline)


def test_fewer_than_100_000_permutations_are_refused():
    run = with_first_relevant_at(*[1] * 8)
    with pytest.raises(ValueError, match="num_permutations must be at least 100,000, got 99,999"):
        compare(QRELS, {"base": run, "other": run}, "base", num_permutations=99_999)


def test_values_a_query_are_compared_as_the_runs_they_come_from():
    runs = {"base": {"q1": {"d1": 1.0}}, "other": {"q1": {"d1": 1.0}, "q2": {"d2": 1.0}}}
    values = {s: evaluate(QRELS, run, ["RR@10"]).per_query["RR@10"] for s, run in runs.items()}
    assert compare_per_query(values, "base", "RR@10") == compare(QRELS, runs, "base", "RR@10")


def test_values_of_other_queries_are_refused():
    with pytest.raises(ValueError, match="other has values for other queries than base"):
        compare_per_query({"base": {"q1": 1.0, "q2": 0.0}, "other": {"q1": 1.0, "q3": 0.0}}, "base")


@pytest.mark.parametrize("score", [math.nan, math.inf, "1.0", None])
def test_a_run_with_a_score_that_is_no_finite_number_is_not_compared(score):
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}}
    good = {"q1": {"a": 1.0}, "q2": {"a": 1.0}}
    message = f"query q2, document b: score {score!r} is not a finite number"
    for runs in ({"good": good, "bad": {**good, "q2": {"b": score}}}, {"good": {**good, "q2": {"b": score}}}):
        with pytest.raises(ValueError, match=escape(message)):
            compare(qrels, runs, "good")


def test_rounding_to_six_digits_makes_no_winner():
    rng = random.Random(0)
    values = {f"q{i}": rng.random() for i in range(200)}
    kept = {q: float(f"{value:.6g}") for q, value in values.items()}
    [same] = compare_per_query({"kept": kept, "now": values}, "kept")
    assert (same.wins, same.losses) == (0, 0)
    better = values | {"q0": values["q0"] + 2e-5, "q1": values["q1"] - 2e-5}
    [changed] = compare_per_query({"kept": kept, "now": better}, "kept")
    assert (changed.wins, changed.losses) == (1, 1)


def test_pairs_tested_together_have_the_p_of_each_alone():
    differences = np.random.default_rng(1).normal([0.0, 0.1, 0.3], 1.0, size=(150, 3))
    alone = [randomisation_test(column) for column in differences.T]
    assert randomisation_test(differences).tolist() == alone


def test_letters_name_the_systems_that_one_is_proven_better_than():
    rng = np.random.default_rng(2)
    base = rng.random(100)
    raw = {
        "best": base + 0.5,
        "middle": base + rng.normal(0, 0.01, 100),
        "like it": base,
        "worst": base - 0.5,
    }
    values = {s: dict(enumerate(v.tolist())) for s, v in raw.items()}
    values = {s: {f"q{q}": v for q, v in found.items()} for s, found in values.items()}
    assert superscripts(values) == {"best": "bcd", "middle": "d", "like it": "d", "worst": ""}


def test_letters_are_those_of_pairs_corrected_together():
    rng = np.random.default_rng(3)
    values = {
        s: {f"q{i}": v for i, v in enumerate(rng.normal(m, 1, 60))}
        for s, m in zip("xyz", (0, 0.3, 0.8), strict=True)
    }
    pairs = [("x", "y"), ("x", "z"), ("y", "z")]
    single = [
        randomisation_test(np.array([values[a][q] - values[b][q] for q in values["x"]])) for a, b in pairs
    ]
    for level in (0.001, 0.01, 0.05, 0.2):
        expected = {s: "" for s in values}
        for (worse, better), p in zip(pairs, holm(single), strict=True):
            if p <= level:
                expected[better] += "abc"["xyz".index(worse)]
        assert superscripts(values, level) == expected


def test_letters_need_the_same_queries_and_an_alphabet():
    with pytest.raises(ValueError, match="b has values for other queries than a"):
        superscripts({"a": {"q1": 1.0, "q2": 0.0}, "b": {"q1": 1.0}})
    with pytest.raises(ValueError, match="a test needs at least 2 judged queries, got 1"):
        superscripts({"a": {"q1": 1.0}, "b": {"q1": 0.0}})
    with pytest.raises(ValueError, match="27 systems, there are letters for 26"):
        superscripts({f"s{i}": {"q1": 1.0, "q2": 0.0} for i in range(27)})
    assert superscripts({"alone": {"q1": 1.0}}) == {"alone": ""}
