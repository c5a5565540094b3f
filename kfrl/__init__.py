"""kfrl: Knowledge Flow and the methods that it is compared with."""

__version__ = "0.1.0"
