"""A model and data into a run folder; a run folder and images into detections."""
