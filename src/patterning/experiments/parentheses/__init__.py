"""The parentheses experiment: its subject, and the study of it."""
