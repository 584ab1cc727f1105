"""What a query generator learns from: several sets as one, and halves that never meet."""

from collections.abc import Sequence

from dpr.collection import Collection, normalise, stable_hash
from dpr.loading import find_data, load_collection, load_training_data
from dpr.training_data import Example, TrainingData, merge
from dpr.training_sources import from_collection
from dpr.workspace import Workspace


def generator_data(
    space: Workspace, sets: Sequence[str], most_queries: int, held_out: int
) -> tuple[TrainingData, TrainingData, list[str]]:
    """Queries with the passages that answer them, to learn from and to select by.

    Two profiles that name the same sets, their own training data among them, get the same data, so one
    generator serves both.

    Args:
        space: Its training set comes first, unless it is among `sets`.
        sets: Names of sets of pairs or triples, or `<collection>/train`; those that the data folder lacks
            are left out.
        most_queries: Of each set of pairs or triples in `sets` at most so many queries, at random.
        held_out: Queries to select by, taken from all sets at random; at most a fifth.

    Returns:
        What to learn from, what to select by, and the sets left out. No dev or test query of a collection
        that is named is in either.
    """
    own, _ = space.training_data()
    names = list(sets) if own.name in sets else [own.name, *sets]
    there = [name for name in names if name == own.name or find_data(name.removesuffix("/train"))]
    evaluated = [space.collection(split) for split in space.splits() if split != "train"]
    seed, parts = space.profile.seeds[0], []
    for name in there:
        if name == own.name:
            part = own
        elif name.endswith("/train"):
            whole = load_collection(name.removesuffix("/train"), "train")
            evaluated += [whole.with_split(split) for split in whole.all_qrels if split != "train"]
            part = from_collection(whole)
        else:
            part = load_training_data(name)
            if len(part.examples) > most_queries:
                _, part = part.split(most_queries / len(part.examples), seed)
        parts.append(part)
    data = merge("+".join(there), *(part.without_queries(*evaluated) for part in parts))
    data = data.with_positives(lambda example: example.positives)  # passages of queries left out go
    learn, select = data.split(min(0.2, held_out / len(data.examples)), seed)
    return learn, select, [name for name in names if name not in there]


def half_of(text: str) -> int:
    """Which half of all passages a text belongs to, 0 or 1; copies, case and white space aside, to one.

    >>> half_of("Masks work."), half_of("masks  work."), half_of("Zinc helps.")
    (1, 1, 0)
    """
    return int(stable_hash(normalise(text)), 16) % 2


def learn_apart(
    collection: Collection, learn: TrainingData, select: TrainingData
) -> list[tuple[TrainingData, TrainingData]]:
    """Split training data by halves of its passages, where it has passages of the collection.

    A generator that has learnt a passage's own training queries writes them again from memory. The first
    one gets nothing of the passages whose `half_of` is 0, and so can write for those; the second of 1.

    Args:
        collection: What will be expanded.
        learn: What to learn from.
        select: What to select by.

    Returns:
        For each half what to learn from, the other half, and what to select by, this one. Without a passage
        in common one pair, as given.

    Raises:
        ValueError: A half with nothing to learn from or to select by.
    """
    expanded = {normalise(passage.contents) for passage in collection.passages}
    if expanded.isdisjoint(map(normalise, learn.passages.values())):
        return [(learn, select)]

    def part(data: TrainingData, half: int) -> TrainingData:
        def keep(example: Example) -> dict[str, int]:
            positives = example.positives.items()
            return {d: grade for d, grade in positives if half_of(data.passages[d]) == half}

        return data.with_positives(keep)

    return [(part(learn, 1 - half), part(select, half)) for half in (0, 1)]
