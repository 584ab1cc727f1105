"""Generating queries for passages, and expanding documents with them."""
