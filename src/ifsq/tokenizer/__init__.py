"""Tokenizers: encoder, quantizer, decoder, their losses and their training task."""
