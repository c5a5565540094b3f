"""What training has in common, whatever is trained."""
