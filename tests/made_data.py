"""What tests make up: as many training examples as wanted, and debates in which queries are documents."""

from dpr.data.collection import Collection, Passage
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


DEBATES = {
    "zoos": (
        "Zoos keep rare animals alive and teach children about them.",
        "Animals in zoos live in small cages, and children learn little there.",
    ),
    "cars": (
        "Cars bring people from villages to their work each morning.",
        "Cars fill streets with noise, and people breathe what they burn.",
    ),
    "homework": (
        "Homework trains children to work alone each day.",
        "Homework takes the hours in which children play and sleep.",
    ),
    "sugar": (
        "A tax on sugar makes people buy less of it and keeps teeth healthy.",
        "A tax on sugar takes money from people who have little.",
    ),
    "space": (
        "Flights into space teach us about rare metals and other stars.",
        "Flights into space burn money that hospitals need each day.",
    ),
    "pets": (
        "Pets teach children care, and people with animals live longer.",
        "Pets in small flats sleep all day and have little play.",
    ),
}


def debates(split="test"):
    """Twelve documents, each also a query that is answered by its opposite, as in ArguAna: `zoos-pro`, …"""
    passages = [
        Passage(f"{topic}-{side}", f"On {topic}", text)
        for topic, texts in DEBATES.items()
        for side, text in zip(("pro", "con"), texts, strict=True)
    ]
    opposite = {"pro": "con", "con": "pro"}
    qrels = {p.doc_id: {f"{p.doc_id[:-3]}{opposite[p.doc_id[-3:]]}": 1} for p in passages}
    return Collection("debates", passages, {p.doc_id: p.text for p in passages}, {split: qrels}, split)
