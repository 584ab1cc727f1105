"""Training data that tests make up: texts from ids, and as many examples as wanted."""

from dpr.data.examples import Example
from dpr.data.training_data import TrainingData


def data_of(*examples, **texts):
    """Training data of these examples; a passage whose text is not given has one of its own."""
    named = {doc_id: f"text of {doc_id}" for e in examples for doc_id in (*e.positives, *e.negatives)}
    return TrainingData("made", examples, {**named, **texts})


def numbered(count, num_negatives=0):
    """As many examples, each with a positive and so many negatives of its own: `p0`, `n0-0` and so on."""
    return data_of(
        *(
            Example(f"q{n}", f"query {n}", {f"p{n}": 1}, tuple(f"n{n}-{i}" for i in range(num_negatives)))
            for n in range(count)
        )
    )
