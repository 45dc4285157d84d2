"""From unimodal experts to one posterior."""
