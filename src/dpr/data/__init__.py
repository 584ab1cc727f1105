"""Reading, checking and downloading collections, TREC runs, judgements and training data."""
