"""The page of `msefpn demo`: a picture in, boxes out, in a browser."""
