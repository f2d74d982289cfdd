"""From a configuration and data to weights in a run folder."""
