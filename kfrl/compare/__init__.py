"""Groups of runs, statistics and plots."""
