"""A Llama-family decoder in Flax, and its weights from and to Hugging Face folders and GGUF files."""

from lowbit.models.hf import save_hf
from lowbit.models.pretrained import Pretrained, load
from lowbit.models.transformer import Block, RematPolicy, Transform, Transformer

__all__ = ["Block", "Pretrained", "RematPolicy", "Transform", "Transformer", "load", "save_hf"]
