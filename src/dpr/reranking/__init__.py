"""Cross-encoders: scoring pairs, reranking runs, and training on lists of passages."""
