"""Datasets, losses, negatives and the trainers; a training that was killed goes on."""
