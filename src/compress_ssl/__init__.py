"""compress-ssl: compress a self-supervised vision encoder into a small one that keeps its neighbourhoods."""

__version__ = "0.1.0"
