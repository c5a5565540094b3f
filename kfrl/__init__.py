"""kfrl: Knowledge Flow and other methods of knowledge transfer."""

__version__ = "0.1.0"
