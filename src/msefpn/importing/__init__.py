"""Configurations of other libraries, read into recipes."""
