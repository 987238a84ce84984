"""PSNR and SSIM of pictures, running figures of a tokenizer, their table, and a sheet of originals above copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

SSIM_WINDOW = 7


def _comparable(true: torch.Tensor, copy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as float64 (B, 3, H, W) in [0, 1], without gradients."""
    import torch

    from tokenization.tokenizer_base import check_pixels

    pair = []
    for pictures in (true, copy):
        # In fp32 the variances of SSIM would be differences of near numbers. MPS has no float64.
        if isinstance(pictures, torch.Tensor) and pictures.device.type == "mps":
            pictures = pictures.cpu()
        if isinstance(pictures, torch.Tensor) and pictures.dtype == torch.uint8:
            pictures = pictures.double() / 255
        check_pixels(pictures, stride=1)
        pair.append(pictures.detach().double())
    if pair[0].shape != pair[1].shape:
        shapes = " and ".join(str(tuple(pictures.shape)) for pictures in pair)
        raise ValueError(f"Pictures and their copies must have the same shape, got {shapes}.")
    return pair[0], pair[1]


def psnr(true: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of every picture; equal pictures get 150, not infinity.

    Args:
        true, copy: (B, 3, H, W), each uint8 or floats in [0, 1].
    Returns:
        (B,) float64, without gradients.
    Raises:
        ValueError: wrong type, shape or range, NaNs, or shapes that differ.
    """
    true, copy = _comparable(true, copy)
    return -10 * (true - copy).square().flatten(1).mean(1).clamp_min(1e-15).log10()


def ssim(true: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    """Structural similarity of every picture (Wang et al. 2004), averaged over channels and positions.

    Windows are uniform, 7 x 7 and inside the picture; covariances are unbiased: scikit-image's defaults with a
    `channel_axis`.

    Args, Returns, Raises: as `psnr`; pictures must have at least 7 x 7 pixels.
    """
    import torch.nn.functional as F

    true, copy = _comparable(true, copy)
    if min(true.shape[2:]) < SSIM_WINDOW:
        height, width = true.shape[2:]
        raise ValueError(
            f"SSIM needs pictures of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {height} x {width}."
        )

    def window_mean(values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(values, SSIM_WINDOW, stride=1)

    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    mean_t, mean_c = window_mean(true), window_mean(copy)
    variance_t = unbiased * (window_mean(true * true) - mean_t * mean_t)
    variance_c = unbiased * (window_mean(copy * copy) - mean_c * mean_c)
    covariance = unbiased * (window_mean(true * copy) - mean_t * mean_c)
    c1, c2 = 0.01**2, 0.03**2  # the paper's K1 and K2, for values in [0, 1]
    luminance = (2 * mean_t * mean_c + c1) / (mean_t * mean_t + mean_c * mean_c + c1)
    structure = (2 * covariance + c2) / (variance_t + variance_c + c2)
    return (luminance * structure).flatten(1).mean(1)


# --- figures of a tokenizer


class TokenizerScore:
    """Running figures of a visual tokenizer: `add` frames, then read the `result`. Only sums are kept."""

    def __init__(self, tokenizer):
        import torch

        self.tokenizer = tokenizer
        self.counts = torch.zeros(tokenizer.config.num_codes, dtype=torch.long)
        self.psnr = self.ssim = 0.0
        self.num_frames = self.moved = self.kept = 0

    def add(self, frames: np.ndarray) -> torch.Tensor:
        """Encode and decode frames, and add them to the figures.

        Args:
            frames: uint8 (N, H, W, 3), with sides that are multiples of the stride.
        Returns:
            the decoded copies, uint8 (N, 3, H, W), on the CPU.
        Raises:
            ValueError: wrong type or shape, or a side that the tokenizer cannot encode.
        """
        import torch

        if frames.dtype != "uint8" or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames must be uint8 (N, H, W, 3), not {frames.dtype} {frames.shape}.")
        true = torch.from_numpy(frames).to(self.tokenizer.device).permute(0, 3, 1, 2)
        stride = self.tokenizer.config.stride
        with torch.no_grad():
            codes = self.tokenizer.encode(true.float() / 255)
            shifted = self.tokenizer.encode(true.float().roll((stride, stride), (2, 3)) / 255)
            # 8 bits, as a picture is stored and seen.
            copies = (self.tokenizer.decode(codes).float() * 255).round().to(torch.uint8)
        self.counts += torch.bincount(codes.flatten().cpu(), minlength=len(self.counts))
        self.psnr += psnr(true, copies).sum().item()
        self.ssim += ssim(true, copies).sum().item()
        self.num_frames += len(frames)
        kept = shifted[:, 1:, 1:] == codes[:, :-1, :-1]  # the others have rolled in from the opposite side, or out
        self.moved += kept.numel()
        self.kept += kept.sum().item()
        return copies.cpu()

    def result(self) -> dict[str, float | int | None]:
        """`psnr` (dB) and `ssim`, means over frames; `codes_used` of `num_codes`; `perplexity`, exp of the codes'
        entropy over all frames; `shift_equality`, the share of codes that stay the same when the picture moves by one
        code to the right and down (ours; 1 for a tokenizer whose codes depend on their own patches alone; None for
        pictures of a single row or column of codes); `num_frames`.

        Raises:
            ValueError: no frame was added.
        """
        if not self.num_frames:
            raise ValueError("There are no frames to measure.")
        share = self.counts[self.counts > 0].double() / self.counts.sum()
        return {
            "psnr": round(self.psnr / self.num_frames, 2),
            "ssim": round(self.ssim / self.num_frames, 4),
            "codes_used": len(share),
            "perplexity": round((-(share * share.log()).sum()).exp().item(), 1),
            "shift_equality": round(self.kept / self.moved, 6) if self.moved else None,
            "num_frames": self.num_frames,
            "num_codes": len(self.counts),
        }


def measure(tokenizer, frames: np.ndarray, batch_size: int = 64) -> dict[str, float | int | None]:
    """Figures of uint8 frames (N, H, W, 3); see `TokenizerScore.result`."""
    score = TokenizerScore(tokenizer)
    for start in range(0, len(frames), batch_size):
        score.add(frames[start : start + batch_size])
    return score.result()


def markdown_table(results: dict[str, dict]) -> str:
    """A Markdown table of one tokenizer's figures, a row per dataset."""
    num_codes = next(iter(results.values()))["num_codes"]
    codes = f"codes used (of {num_codes})"
    rows = [f"| pictures | PSNR (dB) | SSIM | {codes} | perplexity | equal after a shift | frames |"]
    rows.append("|---|---|---|---|---|---|---|")
    row = "| {} | {psnr:.2f} | {ssim:.4f} | {codes_used} | {perplexity:.1f} | {shift} | {num_frames} |"
    for name, figures in results.items():
        share = figures["shift_equality"]
        rows.append(row.format(name, **figures, shift="-" if share is None else f"{share:.4f}"))
    return "\n".join(rows)


def reconstruction_sheet(
    originals: torch.Tensor, copies: torch.Tensor, title: str = "", columns: int = 8, cell: int = 128
) -> Image.Image:
    """A picture of originals above their copies, with the PSNR of each pair.

    Args:
        originals, copies: as in `psnr`.
        columns: pairs side by side.
        cell: upper limit in pixels for the larger side of a picture, which is enlarged by a whole factor.
    Raises:
        ValueError: as in `psnr`.
    """
    from PIL import Image, ImageDraw

    decibels = psnr(originals, copies).tolist()
    scale = max(1, cell // max(originals.shape[2:]))
    height, width = (scale * side for side in originals.shape[2:])
    gap, line, margin = 4, 16, 56
    columns = min(columns, len(decibels))
    block = 2 * (height + gap) + line + gap  # two pictures and the figure under them
    size = (margin + columns * (width + gap), line + 2 * gap + -(-len(decibels) // columns) * block)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, fill="black")
    for index, decibel in enumerate(decibels):
        x = margin + index % columns * (width + gap)
        top = line + 2 * gap + index // columns * block
        for row, (label, pictures) in enumerate((("original", originals), ("copy", copies))):
            picture, y = pictures[index].detach().cpu(), top + row * (height + gap)
            if picture.is_floating_point():
                picture = (picture.float().clamp(0, 1) * 255).round().byte()
            picture = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
            sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y))
            if index % columns == 0:
                draw.text((gap, y + height // 2 - 6), label, fill="black")
        draw.text((x, top + 2 * (height + gap)), f"{decibel:.1f} dB", fill="black")
    return sheet
