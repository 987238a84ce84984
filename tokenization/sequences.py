"""The layout of ids: special tokens, the code offset, raster order, packs of images, grids to rows and back.

A row is `start, codes..., end` (paper Sec. 3.4, which gives the ids 1, 2, 3). Codes are in raster order within a frame
and frames in time order, without separators. In the paper, a row of images packs 16 of them: one start token, the
images, one end token. Ids 4..63 are reserved for prompts: a prompted row is `start, prompt id, codes..., end`, whose
second id says which task its frames show (ours; the paper is silent).
"""

import numpy as np
import torch

PAD_ID = 0
VIDEO_START_ID = 1
END_ID = 2
IMAGE_START_ID = 3
CODE_OFFSET = 64
PROMPT_IDS = range(4, CODE_OFFSET)


def vocab_size(num_codes: int) -> int:
    """Size of the vocabulary for a tokenizer with `num_codes` codes: 8192 codes give 8256 ids."""
    return CODE_OFFSET + num_codes


def _as_codes(codes) -> torch.Tensor:
    """Codes of any integer dtype, including numpy's uint16, as int64."""
    if isinstance(codes, np.ndarray):
        codes = torch.from_numpy(codes.astype(np.int64))
    codes = torch.as_tensor(codes)
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(
            f"codes must be integers, not {codes.dtype}; pass the output of a visual tokenizer's encode()."
        )
    codes = codes.long()
    if codes.numel() and codes.min() < 0:
        raise ValueError(f"codes must be 0 or more, got {int(codes.min())}.")
    return codes


def _rows(codes: torch.Tensor, start: int, end: bool) -> torch.Tensor:
    """Codes (B, ...) -> ids (B, 1 + n [+ 1]); flattening keeps raster order within frames and time order across."""
    codes = codes.flatten(1) + CODE_OFFSET
    parts = [codes.new_full((len(codes), 1), start), codes]
    if end:
        parts.append(codes.new_full((len(codes), 1), END_ID))
    return torch.cat(parts, dim=1)


def video_rows(codes, end: bool = True) -> torch.LongTensor:
    """Rows of videos.

    Args:
        codes: integers 0..K-1, torch or numpy, (B, T, h, w) or already flat (B, T*h*w).
        end: append the end token; False for a prompt that is to be continued.
    Returns:
        ids (B, 1 + T*h*w + 1), or one column fewer without the end token.
    Raises:
        ValueError: not integers, negative codes, or another shape.
    """
    codes = _as_codes(codes)
    if codes.dim() not in (2, 4):
        raise ValueError(f"Video codes must be (B, T, h, w) or (B, T*h*w), not {tuple(codes.shape)}.")
    return _rows(codes, VIDEO_START_ID, end)


def image_rows(codes, end: bool = True) -> torch.LongTensor:
    """Rows of images: (B, h, w) gives one image per row, (B, N, h, w) packs of N images (16 in the paper).

    A pack is one plain causal sequence: one start token, no separators, no position reset, one end token.

    Args, Raises: as `video_rows`.
    Returns:
        ids (B, 1 + N*h*w + 1), or one column fewer without the end token.
    """
    codes = _as_codes(codes)
    if codes.dim() not in (3, 4):
        raise ValueError(f"Image codes must be (B, h, w) or (B, N, h, w), not {tuple(codes.shape)}.")
    return _rows(codes, IMAGE_START_ID, end)


def fill_row(row: np.ndarray, start: int, pieces: list[np.ndarray]) -> None:
    """Write one row in place: what `video_rows` or `image_rows` returns, several times faster for a single row.

    Args:
        row: int64 (1 + n + 1,), overwritten. start: VIDEO_START_ID or IMAGE_START_ID.
        pieces: codes uint16, flat, whose lengths add up to n.
    """
    row[0], row[-1], place = start, END_ID, 1
    for codes in pieces:
        row[place : place + len(codes)] = codes
        place += len(codes)
    row[1:-1] += CODE_OFFSET


def prompted_rows(codes, prompt_id: int, end: bool = True) -> torch.LongTensor:
    """Rows of frames that are examples of a task: start token, the task's prompt id, codes, end token.

    Args:
        codes: as of `video_rows`; images and labels in turn.
        prompt_id: 4 to 63.
        end: as of `video_rows`.
    Returns:
        ids (B, 2 + T*h*w + 1), or one column fewer without the end token.
    Raises:
        ValueError: as `video_rows`, or an id that is not reserved for prompts.
    """
    if prompt_id not in PROMPT_IDS:
        raise ValueError(f"prompt_id is {prompt_id}; ids {PROMPT_IDS[0]} to {PROMPT_IDS[-1]} are reserved for prompts.")
    rows = video_rows(codes, end)
    return torch.cat([rows[:, :1], rows.new_full((len(rows), 1), prompt_id), rows[:, 1:]], dim=1)


def code_positions(ids: torch.Tensor) -> torch.BoolTensor:
    """Mask of the ids that are visual codes, not special or reserved tokens. Any shape, usually (B, L)."""
    return ids >= CODE_OFFSET


def codes_of(ids, grid: tuple[int, int]) -> torch.LongTensor:
    """The codes in rows of ids, without special tokens and offset, as frames.

    Args:
        ids: (B, L) or (L,) ids; every row must hold the same number of whole frames.
        grid: tokens per frame as (h, w).
    Returns:
        codes (B, T, h, w); B = 1 for a single row (L,).
    Raises:
        ValueError: rows hold different numbers of codes, or a row does not end on a whole frame.
    """
    ids = torch.as_tensor(ids).long()
    if ids.dim() == 1:
        ids = ids[None]
    if ids.dim() != 2:
        raise ValueError(f"ids must be (B, L) or (L,), not {tuple(ids.shape)}.")
    is_code = code_positions(ids)
    counts = is_code.sum(1).unique().tolist()
    if len(counts) > 1:
        raise ValueError(f"The rows hold different numbers of codes ({counts}); decode them one at a time.")
    h, w = grid
    count = counts[0] if counts else 0
    if count == 0 or count % (h * w):
        raise ValueError(
            f"A row holds {count} codes, which is not a whole number of {h} x {w} frames ({h * w} codes each); "
            "check the grid, or cut the row at the end of a frame."
        )
    return (ids[is_code] - CODE_OFFSET).view(len(ids), count // (h * w), h, w)
