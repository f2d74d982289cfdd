"""What a neck does to a photograph: maps, gates and attention on one page."""
