"""The methods for tables, one file for each."""
