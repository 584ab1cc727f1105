"""Datasets, losses, hard negatives and trainers; a training that was killed can be resumed."""
