"""`msefpn predict`: sources of images in, pictures, tables and texts out."""
