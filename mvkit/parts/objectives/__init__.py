"""Which terms to ask a model for, and which bound to make of them."""
