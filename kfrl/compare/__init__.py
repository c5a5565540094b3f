"""Comparison of runs: statistics, tables, plots and reports."""
