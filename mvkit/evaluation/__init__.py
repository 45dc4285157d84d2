"""Evaluation: metrics, each a registered part, and the report that they fill."""
