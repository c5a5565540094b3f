"""Nets that classify images."""
