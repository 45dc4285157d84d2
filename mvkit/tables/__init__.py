"""Tables with gaps, filled by one call: types, model, training and report."""
