"""The page of `msefpn demo`: detection on uploaded images in a browser."""
