"""Data: where rows come from, what they lack, and how they become batches."""
