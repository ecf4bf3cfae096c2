"""A whole experiment, once: pilots, readings, directions, strengths, arms, retraining, evidence, page."""
