"""Image classifiers: data, one training loop, and a file a method."""
