"""The pictures below a folder, each counted once."""

from pathlib import Path

from jaxaccel.data.class_folders import ClassFile, Kind, Listing, list_files

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
ImageFile = ClassFile
IMAGES = Kind("images", "picture", SUFFIXES)


def list_images(root: Path) -> Listing:
    """Finds the pictures of each split and class of a folder, as `list_files` does; its errors are those."""
    return list_files(root, IMAGES)
