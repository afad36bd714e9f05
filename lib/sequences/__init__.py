"""Sequences of pictures that lie in folders, zips and tars: where they are, and their frames."""
