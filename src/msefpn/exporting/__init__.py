"""A trained detector as one file that other programs run, compared with the run it is of."""
