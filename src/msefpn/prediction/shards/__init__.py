"""Prediction in shards: what is made is kept, and several processes, or Ray's actors, work at it."""
