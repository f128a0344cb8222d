"""`flexrnn bench`: how fast layers are here, as ratios to torch's, once they are right."""
