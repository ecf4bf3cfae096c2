"""Weighted training of many replicas."""
