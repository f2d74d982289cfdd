"""Configurations and checkpoints of other libraries, read into recipes and weights."""
