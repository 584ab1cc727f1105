"""The site of `make book`: notebooks as chapters, results by query and by system, what mistakes cost."""
