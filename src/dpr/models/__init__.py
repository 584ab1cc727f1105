"""From texts to vectors: tokenising, pooling, checkpoints, and models with one encoder or two."""
