"""Queries written for passages, and documents expanded with them."""
