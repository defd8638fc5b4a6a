"""What holds encoded image files, and which there are: folders, lists, tar shards, tables of Hugging Face's library."""
