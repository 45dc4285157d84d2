"""What makes the pages of this site that are not written by hand; `docs/conf.py` calls it."""
