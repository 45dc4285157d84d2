"""Training: stages, the loop over epochs and batches, and the files of a run."""
