"""Estimators of scikit-learn on mvkit. Imported at discovery, so it stays light."""
