"""Detections and truth into numbers."""
