"""Published scores."""
