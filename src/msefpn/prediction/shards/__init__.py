"""Prediction in shards, by several processes or by actors of Ray; finished shards are kept."""
