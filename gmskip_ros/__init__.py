"""Skip-layer and full-layer LLaVA answers on camera frames; see docs and README.md."""

__version__ = '0.1.0'
