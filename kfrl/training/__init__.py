"""The parts of training that games and images share."""
