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
KNOWN = ", ".join(extension[1:] for extension in EXTENSIONS)
"""All endings, for messages."""

EIGHT_BIT_EXTENSIONS = tuple(e for form in ("JPEG", "WEBP", "BMP", "GIF", "AVIF") for e in EXTENSIONS_OF[form])
"""Endings of formats whose channels have 8 bits, or are brought to 8 by their decoder's own rounding."""

NOT_READ = (
    *(".heic", ".heif", ".hif", ".jxl", ".qoi", ".svg", ".psd", ".xcf", ".tga", ".exr", ".hdr", ".pcx", ".dds", ".sgi"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".ico", ".icns", ".eps", ".xbm", ".xpm", ".dib"),
    *(".pam", ".pfm", ".j2c", ".jpc", ".jph", ".jxr", ".mpo", ".dcm"),
)
"""Endings of pictures that are not read, and are not passed over in silence as a caption is."""


def is_image(name: str) -> bool:
    """Whether a file is read, by its name."""
    return name.lower().endswith(EXTENSIONS)


def is_unread(name: str) -> bool:
    """Whether a file is a picture that is not read, by its name."""
    return name.lower().endswith(NOT_READ)
