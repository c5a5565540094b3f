"""A3C from scratch (Mnih et al. 2016): the baseline without teachers."""

from agents.methods.base import Method

METHOD = Method
