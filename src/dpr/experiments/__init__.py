"""Code that only the notebooks and the README of this repository need."""
