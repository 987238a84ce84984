"""Continued clips on a page: the film that `toto generate` wrote, and the frames of its sheet, one column a frame."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.pictures import cut
from evaluation.report.reading import Generation

COLOURS = 256  # of a column's PNG; enough for its codes, at a third of the size
MANY = 16  # frames above which they are drawn smaller


def clip_facts(generation: Generation) -> dict:
    """What the page shows of a clip.

    Returns:
        sentence: what the model was given and drew. caption: where from and how. film: of `film`. rows: names of the
        rows of a column. columns: of `columns`, and many: whether there are many. sheet: the picture as a data URI,
        only if it cannot be cut into columns.
    """
    about, found = generation.about, columns(generation)
    names = ["true", "reconstructed", "drawn"]
    if found and (samples := found[0]["rows"] - 2) > 1:
        names[2:] = [f"drawn {k + 1}" for k in range(samples)]
    facts = {"sentence": "", "caption": str(generation.sheet), "film": film(generation), "rows": names}
    facts |= {"columns": found, "many": len(found) > MANY, "sheet": None}
    if not found:
        with Image.open(generation.sheet) as sheet:
            facts["sheet"] = data_uri("image/png", png(sheet.convert("RGB")))
    if about is None:
        return facts
    given = "the first frame" if about.num_prompt_frames == 1 else f"the first {about.num_prompt_frames} frames"
    drew = "the next frame" if about.num_frames == 1 else f"the next {about.num_frames}"
    s = about.sampling
    sampling = [f"temperature {s['temperature']:g}"]
    sampling += [f"{key} {s[key]:g}" for key in ("top_k", "top_p") if s[key] is not None]
    facts["sentence"] = f"{Path(about.model).name} was given {given} of a clip and drew {drew}."
    facts["caption"] = (
        f"{about.source}; {', '.join(sampling)}, seed {about.seeds['draws']}; "
        f"{about.tokens_per_second:,.0f} tokens/s, {about.seconds_per_frame:.2f} s per frame."
    )
    return facts


def columns(generation: Generation) -> list[dict]:
    """A dict for each frame: number, drawn (or given), rows (their count), picture (the rows above each other, PNG).

    Empty if the sheet has no result next to it or was not written by `toto generate`.
    """
    about = generation.about
    if about is None:
        return []
    with Image.open(generation.sheet) as sheet:
        rows = cut(sheet.convert("RGB"), about.num_prompt_frames + about.num_frames)
    if rows is None:
        return []
    return [
        {
            "number": time + 1,
            "drawn": time >= about.num_prompt_frames,
            "rows": len(rows),
            "picture": data_uri("image/png", png(stacked([row[time] for row in rows]))),
        }
        for time in range(len(rows[0]))
    ]


def stacked(tiles: list[Image.Image]) -> Image.Image:
    return Image.fromarray(np.concatenate([np.asarray(tile) for tile in tiles]))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def film(generation: Generation) -> dict | None:
    """The .mp4 or .gif next to a sheet, for the page; None if there is none.

    Returns:
        is_video: for <video>, else for <img>. source: data URI. Of a video also poster: data URI of the last frame; and
        size: its width and height.
        Browsers play H.264 in yuv420p; any other .mp4 becomes an animated WebP.
    """
    movie, picture = (generation.sheet.with_suffix(kind) for kind in (".mp4", ".gif"))
    if not movie.is_file():
        return {"is_video": False, "source": data_uri("image/gif", picture.read_bytes())} if picture.is_file() else None

    import av

    with av.open(str(movie)) as container:
        stream = container.streams.video[0]
        plays = (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        rate = float(stream.average_rate)
        frames = [frame.to_image() for frame in container.decode(stream)]
    if plays:
        poster = data_uri("image/png", png(frames[-1]))
        source, size = data_uri("video/mp4", movie.read_bytes()), frames[-1].size
        return {"is_video": True, "source": source, "poster": poster, "size": size}
    buffer = io.BytesIO()
    shown = round(1000 / rate)
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=shown, loop=0, quality=90)
    return {"is_video": False, "source": data_uri("image/webp", buffer.getvalue())}
