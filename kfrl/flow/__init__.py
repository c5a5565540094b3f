"""Knowledge Flow between any PyTorch modules (Knowledge Flow, section 3)."""

from kfrl.flow.module import KnowledgeFlow
from kfrl.flow.schedule import HandOver, dependence_weight
from kfrl.nets.links import Link, hidden_layers, links_by_depth

__all__ = [
    "HandOver",
    "KnowledgeFlow",
    "Link",
    "dependence_weight",
    "hidden_layers",
    "links_by_depth",
]
