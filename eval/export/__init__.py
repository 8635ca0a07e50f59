"""A classifier in formats that other programs read, each loaded again and compared before it counts."""
