"""Explanations: the maps, gates and attention of a neck for one image, on one page."""
