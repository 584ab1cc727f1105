"""Metrics, significance tests, and analysis of single queries."""
