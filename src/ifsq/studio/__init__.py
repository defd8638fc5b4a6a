"""A page in the browser where one looks at trained models: an image through tokenizers, generators side by side."""
