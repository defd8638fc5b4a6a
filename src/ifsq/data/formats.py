"""Which image files are promised to be read: the one place that says it, for folders, lists, shards and decoding."""

EXTENSIONS_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf"),
}
"""Endings of file names, in lower case, by Pillow's name of a format. What a file holds is for its bytes to say."""

FORMATS = tuple(EXTENSIONS_OF)
"""All that Pillow may try: among its other plug-ins are some that start programs (PostScript)."""

EXTENSIONS = tuple(extension for extensions in EXTENSIONS_OF.values() for extension in extensions)

EIGHT_BIT_EXTENSIONS = tuple(e for form in ("JPEG", "WEBP", "BMP", "GIF", "AVIF") for e in EXTENSIONS_OF[form])
"""Endings of formats whose channels have 8 bits, or are brought to 8 by their decoder's own rounding."""
