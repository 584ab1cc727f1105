"""From texts to vectors: tokens, pooling, checkpoints, one encoder or two."""
