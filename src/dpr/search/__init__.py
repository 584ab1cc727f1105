"""BM25, vectors on disk, exact and approximate indexes, and fusion of rankings."""
