"""What a file is, by its suffix and, where a suffix serves for both, by its contents: a video, a picture, rows, ..."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence

_VIDEOS = """
.264 .265 .3g2 .3gp .3gpp .amv .asf .avi .divx .dv .f4v .flc .fli .flv .gxf .h264 .h265 .hevc .ismv .ivf .m1v .m2t .m2ts
.m2v .m4v .mj2 .mjpeg .mjpg .mk3d .mkv .mov .mp4 .mpe .mpeg .mpg .mpv .mts .mxf .nut .obu .ogm .ogv .qt .rm .rmvb .ts
.vob .webm .wmv .wtv .xvid .y4m"""
_STILLS = """
.avif .bmp .dib .ico .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pcx .pgm .pnm .ppm .qoi .tga .tif .tiff .webp"""

# Containers and raw streams of video that PyAV's FFmpeg reads. Not here: suffixes that are mostly audio (.ogg, .mka).
VIDEOS = frozenset(_VIDEOS.split())
# Still pictures that PIL reads without a plugin.
STILLS = frozenset(_STILLS.split())
# Pictures of one frame or of many, which serve as images or as clips.
MAY_MOVE = frozenset({".apng", ".gif", ".png"})
PICTURES = STILLS | MAY_MOVE
TABLES = frozenset({".arrow", ".parquet"})
TARS = frozenset({".tar"})
ARCHIVES = frozenset({".7z", ".bz2", ".gz", ".rar", ".tbz", ".tgz", ".txz", ".xz", ".zip", ".zst"})

# Files looked into to decide whether most pictures of a folder move; where none is a video, all are images.
SAMPLE = 1000


def suffix_of(name: str) -> str:
    """The last suffix in lower case, with its dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def is_animated(file) -> bool:
    """Whether a picture (a path or an open file) has several frames; False if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return bool(getattr(image, "is_animated", False))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return False


def kind_of(path: str | os.PathLike) -> str:
    """ "video" or "image", for a file that is one of them; whatever is not a picture is taken for a video."""
    suffix = suffix_of(str(path))
    return "image" if suffix in STILLS or (suffix in MAY_MOVE and not is_animated(path)) else "video"


def is_media(name: str) -> bool:
    """Whether a file is a video or a picture, by its suffix."""
    return suffix_of(name) in VIDEOS or suffix_of(name) in PICTURES


def is_code(path: str) -> bool:
    """Whether a .ts file is TypeScript and not a transport stream, whose packets of 188 bytes begin with 0x47."""
    with open(path, "rb") as file:
        start = file.read(189)
    return not (start[:1] == b"G" and start[188:189] in (b"G", b""))


def main_kind(names: Sequence[str], path_of, most: int = SAMPLE) -> str | None:
    """The kind of most files, "video" or "image"; videos win a tie. None if there are neither.

    path_of: name -> path. Pictures that may move count as what they are, judged by a sample of `most`.
    """
    suffixes = Counter(map(suffix_of, names))
    videos, stills = (sum(suffixes[suffix] for suffix in kinds) for kinds in (VIDEOS, STILLS))
    may_move = [name for name in names if suffix_of(name) in MAY_MOVE]
    if not videos + stills + len(may_move):
        return None
    if abs(videos - stills) <= len(may_move):  # else they decide nothing
        sample = may_move[:: max(1, len(may_move) // most)]
        share = sum(is_animated(path_of(name)) for name in sample) / max(1, len(sample))
        videos, stills = videos + share * len(may_move), stills + (1 - share) * len(may_move)
    return "video" if videos >= stills else "image"


def of_kind(names: Iterable[str], kind: str, path_of) -> list[str]:
    """The files that are read as this kind. Of an animated picture, an image is its first frame."""
    if kind == "image":
        return [name for name in names if suffix_of(name) in PICTURES]
    return [
        name
        for name in names
        if (suffix := suffix_of(name)) in VIDEOS or (suffix in MAY_MOVE and is_animated(path_of(name)))
    ]


def by_suffix(names: Iterable[str]) -> dict[str, int]:
    """Number of files of each suffix, the most frequent first; a file without a suffix counts under its own name."""
    counts = Counter(suffix_of(name) or name.rpartition("/")[2] for name in names)
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def counted(counts: dict[str, int], most: int = 16) -> str:
    """ "4 .mp4, 2 .txt": the counts of `by_suffix` in words."""
    listed = [f"{count:,} {suffix}" for suffix, count in counts.items()]
    rest = sum(list(counts.values())[most:])
    return ", ".join(listed[:most] + ([f"{rest:,} others"] if rest else []))
