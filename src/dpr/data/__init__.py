"""Collections, TREC runs and judgements, training data: read, checked, downloaded."""
