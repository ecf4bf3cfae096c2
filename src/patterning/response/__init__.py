"""Observables, the susceptibility matrix and its errors."""
