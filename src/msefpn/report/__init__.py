"""The page about runs and data sets: what their folders hold, gathered and drawn."""
