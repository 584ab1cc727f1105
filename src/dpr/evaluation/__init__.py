"""Metrics, significance, and a look at single queries."""
