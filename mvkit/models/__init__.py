"""Models: what users make, train and ask."""
