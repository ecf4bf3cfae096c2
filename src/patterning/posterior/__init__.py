"""Samplers of the localized posterior, chains and their diagnostics."""
