"""compress: prune, distill, quantize and export a language model, and prove what it cost."""

__version__ = "0.1.0"
