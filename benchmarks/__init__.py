"""Speed of our detectors beside their peers: python -m benchmarks."""
