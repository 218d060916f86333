"""Tokenizers: texts as numbers of pieces of words, by Hugging Face's library and in its format."""

from jaxaccel.data.tokenizers.load import load_tokenizer
from jaxaccel.data.tokenizers.tokenizer import Tokenizer
from jaxaccel.data.tokenizers.train import train_tokenizer

__all__ = ["Tokenizer", "load_tokenizer", "train_tokenizer"]
