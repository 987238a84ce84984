"""How well a visual tokenizer keeps pictures: PSNR, SSIM, and how much of its codebook it uses."""

import numpy as np
import torch


@torch.no_grad()
def measure(tokenizer, frames: np.ndarray, batch_size: int = 64) -> dict[str, float | int]:
    """Reconstruction and codebook figures of pictures.

    Args:
        tokenizer: a visual tokenizer (`encode`, `decode`, `config.num_codes`).
        frames: uint8 (N, H, W, 3), sides multiples of the tokenizer's stride.
    Returns:
        `psnr` (dB, mean over pictures), `ssim` (mean; 7-pixel window, as scikit-image's default), `codes_used`,
        `perplexity` (exp of the code entropy), `num_frames`.
    """
    from skimage.metrics import structural_similarity

    psnr, ssim = [], []
    counts = torch.zeros(tokenizer.config.num_codes, dtype=torch.long)
    for start in range(0, len(frames), batch_size):
        batch = frames[start : start + batch_size]
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).to(tokenizer.device).float() / 255
        codes = tokenizer.encode(pixels)
        counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
        decoded = (tokenizer.decode(codes).float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        for true, copy in zip(batch, decoded, strict=True):
            error = np.mean((true.astype(np.float64) - copy) ** 2)
            psnr.append(10 * np.log10(255**2 / max(error, 1e-10)))
            ssim.append(structural_similarity(true, copy, channel_axis=2))
    share = counts[counts > 0].double() / counts.sum()
    return {
        "psnr": round(float(np.mean(psnr)), 2),
        "ssim": round(float(np.mean(ssim)), 4),
        "codes_used": int((counts > 0).sum()),
        "perplexity": round(float(torch.exp(-(share * share.log()).sum())), 1),
        "num_frames": len(frames),
    }
