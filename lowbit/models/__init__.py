"""A Llama-family decoder in Flax, and its weights from and to Hugging Face folders and GGUF files."""

from lowbit.models.transformer import Block, RematPolicy, Transform, Transformer

__all__ = ["Block", "RematPolicy", "Transform", "Transformer"]
