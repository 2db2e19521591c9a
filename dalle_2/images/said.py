"""What a picture says of itself: which way up it is, and which colours its numbers are."""

from PIL import ExifTags, Image

from dalle_2.images.matrix_profile import adobe_rgb

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """How to turn a loaded picture upright, by EXIF or, without it, by XMP. Other tags may be as wrong as they like."""
    if image.format == "TIFF":
        return None  # turned while it was loaded
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return _TURNS.get(int(value[0] if isinstance(value, tuple) else value))
    except Exception:  # a picture is no less sound for a camera that wrote nonsense about it
        return None


def profile_of(image: Image.Image) -> bytes | None:
    """The colour profile in the picture; Adobe RGB's where only EXIF names that, as cameras do (DCF 2.0, "R03")."""
    profile: bytes | None = image.info.get("icc_profile")
    return profile or (adobe_rgb() if "exif" in image.info and _is_adobe_rgb(image) else None)


def _is_adobe_rgb(image: Image.Image) -> bool:
    try:
        index = image.getexif().get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
    except Exception:  # as above
        return False
    return isinstance(index, str) and index.startswith("R03")
