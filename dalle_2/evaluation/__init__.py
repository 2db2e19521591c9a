"""Metrics and reports: what generated pictures show, against what was asked for."""
