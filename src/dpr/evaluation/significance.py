"""Tests whether one run is better than another, and how small a difference the queries can show."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from string import ascii_lowercase

import numpy as np
from scipy import optimize, stats
from threadpoolctl import threadpool_limits

from dpr.arguments import checked
from dpr.data.trec import Qrels
from dpr.evaluation.metrics import evaluate

LEVEL = 0.01  # a difference is proven if its corrected p is at most this: one rule for the whole project
POWER = 0.8  # how often a true difference of the smallest provable size shows
TIE = 1e-5  # values of a query that differ by no more are equal: kept results are rounded to 6 digits


@dataclass(frozen=True)
class Comparison:
    """One run compared with the baseline on one metric.

    Attributes:
        system: The run's name.
        metric: The metric's name.
        mean: The run's mean over all judged queries.
        difference: That mean minus the baseline's.
        p_value: Two-sided p of Fisher's randomisation test, corrected by Holm's method.
        significant: Whether `p_value` is at most the requested level.
        smallest_difference: The smallest true difference that a test at that level would detect with this
            number of queries and this spread, four times out of five (paired t-test, power 0.8).
        wins: Number of queries on which the run is better than the baseline, by more than `TIE`.
        losses: Number of queries on which it is worse, by more than `TIE`.
    """

    system: str
    metric: str
    mean: float
    difference: float
    p_value: float
    significant: bool
    smallest_difference: float
    wins: int
    losses: int


@checked
def compare(
    qrels: Qrels,
    runs: Mapping[str, Mapping[str, Mapping[str, float]]],
    baseline: str,
    metric: str = "nDCG@10",
    num_permutations: int = 100_000,
    level: float = LEVEL,
    seed: int = 0,
) -> list[Comparison]:
    """Test every run against the baseline, paired by query.

    Args:
        qrels: Judgements.
        runs: System name → run; at least two, including the baseline.
        baseline: Name of the run that the others are compared with.
        metric: The metric to compare.
        num_permutations: Number of random sign patterns per test, at least 100,000. With so few
            queries (say 16) that there are no more patterns than this, all of them are used.
        level: A difference is marked as significant if its corrected p is at most this.
        seed: Seed of the random signs, for reproducible p-values.

    Returns:
        One comparison for each run except the baseline, in the order of `runs`.

    Raises:
        ValueError: The baseline is not among the runs, there is no other run, fewer than two queries are
            judged, or there are fewer than 100,000 permutations.

    Source: Smucker, Allan and Carterette 2007 (randomisation test); Holm 1979.
    """
    per_query = {s: evaluate(qrels, run, [metric]).per_query[metric] for s, run in runs.items()}
    return compare_per_query(per_query, baseline, metric, num_permutations, level, seed)


@checked
def compare_per_query(
    per_query: Mapping[str, Mapping[str, float]],
    baseline: str,
    metric: str = "nDCG@10",
    num_permutations: int = 100_000,
    level: float = LEVEL,
    seed: int = 0,
) -> list[Comparison]:
    """Do the same as `compare` from per-query values, such as means over a model's seeds.

    Args:
        per_query: System name → query_id → value; all systems have the same queries.
        baseline: Name of the system that the others are compared with.
        metric: Name of the metric that the values are of.
        num_permutations: As in `compare`.
        level: As in `compare`.
        seed: As in `compare`.

    Raises:
        ValueError: As in `compare`, or a system has values for other queries than the baseline.
    """
    if baseline not in per_query or len(per_query) < 2:
        raise ValueError(
            f"baseline {baseline!r} and at least one other run are needed, got {sorted(per_query)}"
        )
    if num_permutations < 100_000:
        raise ValueError(f"num_permutations must be at least 100,000, got {num_permutations:,}")
    values = _aligned(per_query, baseline)
    others = [system for system in per_query if system != baseline]
    differences = {system: values[system] - values[baseline] for system in others}
    stacked = np.stack([differences[system] for system in others], axis=1)  # [Q, S]
    p_values = holm(randomisation_test(stacked, num_permutations, seed))
    return [
        Comparison(
            system=system,
            metric=metric,
            mean=float(values[system].mean()),
            difference=float(differences[system].mean()),
            p_value=p,
            significant=p <= level,
            smallest_difference=smallest_difference(differences[system], level),
            wins=int((differences[system] > TIE).sum()),
            losses=int((differences[system] < -TIE).sum()),
        )
        for system, p in zip(others, p_values, strict=True)
    ]


def _aligned(per_query: Mapping[str, Mapping[str, float]], first: str) -> dict[str, np.ndarray]:
    """System → its values, float [Q], in the order that one of them has its queries in.

    Raises:
        ValueError: That system has fewer than two queries, or another one has other queries.
    """
    query_ids = list(per_query[first])
    if len(query_ids) < 2:
        raise ValueError(f"a test needs at least 2 judged queries, got {len(query_ids)}")
    other = next((s for s, found in per_query.items() if set(found) != set(query_ids)), None)
    if other is not None:
        raise ValueError(f"{other} has values for other queries than {first}")
    return {s: np.array([found[query_id] for query_id in query_ids]) for s, found in per_query.items()}


def randomisation_test(
    differences: np.ndarray, num_permutations: int = 100_000, seed: int = 0
) -> float | np.ndarray:
    """Two-sided p of Fisher's paired randomisation test.

    Under the null hypothesis the two systems could be swapped on any query, so the signs of the
    per-query differences are flipped at random. The result is that of scipy's `permutation_test`, which takes
    far longer for many pairs; ranx's version uses threads whose random state its seed does not set.

    Args:
        differences: float array [Q], one system's values minus the other's; or [Q, S] for S such pairs, which
            are tested with the same signs.
        num_permutations: Number of random sign patterns; if 2^Q is no more than this, all are used.
        seed: Seed of the random signs.

    Returns:
        p, at most 1 and at least 2 / (num_permutations + 1), or 2 / 2^Q if all patterns are used; for S pairs
        float [S].

    Source: Fisher 1935; Smucker, Allan and Carterette 2007.
    """
    differences = np.asarray(differences, dtype=np.float64)
    table = differences.reshape(len(differences), -1)  # [Q, S]
    observed = table.mean(axis=0)
    tolerance = 100 * np.finfo(np.float64).eps * np.abs(observed)  # equal but for rounding counts as equal
    every = 2 ** len(table) <= num_permutations
    count, drawn = np.zeros((2, table.shape[1]), dtype=np.int64), 0 if every else 1
    batch = max(1, 1_500_000 // max(table.size, 1))
    random_signs = _random_signs(len(table), num_permutations, batch, seed)
    with threadpool_limits(1, "blas"):  # products so small that threads would only wait for each other
        for signs in _all_signs(len(table)) if every else random_signs:
            means = signs @ table / len(table)
            count[0] += (means <= observed + tolerance).sum(axis=0)
            count[1] += (means >= observed - tolerance).sum(axis=0)
            drawn += len(signs)
    p_values = np.minimum(1.0, 2 * (count.min(axis=0) + (not every)) / drawn)
    p_values = np.where(table.any(axis=0), p_values, 1.0)
    return p_values if differences.ndim > 1 else float(p_values[0])


def _all_signs(num_queries: int) -> Iterator[np.ndarray]:
    """Every pattern of signs, float [2^Q, Q], in one batch."""
    yield np.array(list(product((1.0, -1.0), repeat=num_queries)))


def _random_signs(num_queries: int, count: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Batches of random signs, float [batch, Q], the ones that scipy's `permutation_test` draws.

    It swaps, at random, the two places of a sample and its negative.
    """
    rng, batch = np.random.default_rng(seed), min(batch, count)
    places = np.tile(np.arange(2), (batch, num_queries, 1))
    for start in range(0, count, batch):
        yield 1.0 - 2.0 * rng.permuted(places, axis=-1)[: count - start, :, 0]


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons by Holm's method; the results are in the same order.

    The i-th smallest of m is multiplied by m − i + 1; no result is below that of a smaller p, or above 1.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    return corrected.tolist()


def smallest_difference(differences: np.ndarray, level: float = LEVEL) -> float:
    """The smallest true mean difference that a paired t-test would detect four times out of five.

    The test is two-sided, with power `POWER`. It is of one pair of systems: Holm's correction for several
    asks for more.

    Args:
        differences: float array [Q], Q at least 2; only their spread and number matter.
        level: The test's level.

    Returns:
        A difference in the metric's unit; 0 if all differences are equal.

    Raises:
        ValueError: There are fewer than two queries.

    Source: Cohen 1988, Statistical power analysis, chapter 2; Sakai 2018, Laboratory experiments
    in information retrieval, chapter 6 (noncentral t).
    """
    num_queries = len(differences)
    if num_queries < 2:
        raise ValueError(f"a spread needs at least 2 queries, got {num_queries}")
    degrees = num_queries - 1
    critical = stats.t.ppf(1 - level / 2, degrees)

    def missing_power(shift: float) -> float:  # the other tail adds less than 1e-5 and is left out
        return stats.nct.sf(critical, degrees, shift) - POWER

    shift = optimize.brentq(missing_power, 0.0, 2 * critical + 2)
    return float(shift * np.std(differences, ddof=1) / np.sqrt(num_queries))


@checked
def superscripts(
    per_query: Mapping[str, Mapping[str, float]], level: float = LEVEL, num_permutations: int = 100_000
) -> dict[str, str]:
    """Say for each system which others it is proven better than, as ranx's tables do.

    The systems are named a, b, c, … in the order given. Every pair is tested (Fisher's randomisation test),
    and the p-values of all pairs are corrected together (Holm).

    Args:
        per_query: System name → query_id → value; all systems have the same queries, two or more.
        level: A difference is proven if its corrected p is at most this.
        num_permutations: As in `compare`.

    Returns:
        System name → letters of the systems that it is proven better than, in alphabetical order.

    Raises:
        ValueError: More than 26 systems, fewer than two queries, or systems with values for other queries.
    """
    systems = list(per_query)
    if len(systems) < 2:
        return dict.fromkeys(systems, "")
    if len(systems) > len(ascii_lowercase):
        raise ValueError(f"{len(systems)} systems, there are letters for {len(ascii_lowercase)}")
    values = _aligned(per_query, systems[0])
    pairs = list(combinations(systems, 2))
    differences = np.stack([values[first] - values[second] for first, second in pairs], axis=1)  # [Q, pairs]
    p_values = holm(randomisation_test(differences, num_permutations))
    better: dict[str, list[str]] = {system: [] for system in systems}
    for (first, second), difference, p in zip(pairs, differences.T, p_values, strict=True):
        if p <= level:
            winner, loser = (first, second) if difference.mean() > 0 else (second, first)
            better[winner].append(ascii_lowercase[systems.index(loser)])
    return {system: "".join(sorted(letters)) for system, letters in better.items()}
