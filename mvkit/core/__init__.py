"""The mathematics: batches, experts, posteriors, decoding, terms, bounds. Names no part."""
