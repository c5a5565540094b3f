"""Classifiers of tables: model compression and born-again trees."""
