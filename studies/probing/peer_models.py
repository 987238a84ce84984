"""The peers of the probing study, of transformers' own classes: a ViT-MAE and an ImageGPT as large as a small Toto.

Each defines its input, its loss, its cost in FLOPs, and what its folder needs in addition to the weights.
"""

from __future__ import annotations

import torch
from tqdm.auto import tqdm

# 8 blocks of width 192: 4 * 192^2 + 2 * 192 * 768 weights a block, just as many as 4 * 192^2 + 3 * 192 * 512 of a Toto.
WIDTH, LAYERS, HEADS, MLP = 192, 8, 6, 768


def block_flops(layers: int, width: int, mlp: int, tokens: int, causal: bool) -> float:
    """Training FLOPs of the blocks for a picture, counted as `training.architectures.flops_per_token` counts: 6 a
    weight and token, 6 a causal attention pair and channel, 12 where every token sees all."""
    weights = layers * (4 * width * width + 2 * width * mlp)
    return 6 * weights * tokens + (6 if causal else 12) * layers * width * tokens * tokens


class MaskedAutoencoder:
    """ViT-MAE: a quarter of 4-pixel patches of 32 x 32 pixels is encoded, the normalised pixels of the rest are
    predicted by 2 blocks of width 96. Mask, loss and decay: He et al. 2021."""

    resolution, batch_size, weight_decay = 32, 128, 0.05
    note = "reads 32 x 32 pixels as 64 patches, a quarter of which its encoder sees in training"

    def __init__(self, **fields):
        """fields: of ViTMAEConfig, in place of those of the study."""
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        encoder = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
        encoder |= {"intermediate_size": MLP, "image_size": self.resolution, "patch_size": 4}
        decoder = {"decoder_hidden_size": 96, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 3}
        decoder |= {"decoder_intermediate_size": 384}
        config = ViTMAEConfig(**encoder | decoder | {"mask_ratio": 0.75, "norm_pix_loss": True} | fields)
        self.model = ViTMAEForPreTraining(config)
        self.base = self.model.vit
        self.patches = (self.resolution // config.patch_size) ** 2

    def encode(self, pictures: torch.Tensor, seed: int) -> torch.Tensor:
        """uint8 (N, R, R, 3) -> what is kept in memory and given to `loss`: the same."""
        return pictures

    def loss(self, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """uint8 (B, R, R, 3) -> () mean squared error of hidden normalised pixels; the generator draws the masks."""
        pixels = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
        noise = torch.rand(len(pictures), self.patches, generator=generator)
        return self.model(pixel_values=pixels, noise=noise).loss

    def tokens(self) -> int:
        """Patches of a picture that the encoder is trained on."""
        return int(self.patches * (1 - self.model.config.mask_ratio))

    def flops(self) -> float:
        """Training FLOPs of a picture, the decoder's included."""
        c = self.model.config
        seen, every, patch = 1 + self.tokens(), 1 + self.patches, 3 * c.patch_size**2
        ends = every * patch * (c.hidden_size + c.decoder_hidden_size) + seen * c.hidden_size * c.decoder_hidden_size
        encoder = block_flops(c.num_hidden_layers, c.hidden_size, c.intermediate_size, seen, causal=False)
        shape = (c.decoder_num_hidden_layers, c.decoder_hidden_size, c.decoder_intermediate_size)
        return encoder + block_flops(*shape, every, causal=False) + 6 * ends

    def preprocessor(self) -> dict:
        size = {"height": self.resolution, "width": self.resolution}
        half = [0.5, 0.5, 0.5]
        return {"image_processor_type": "ViTImageProcessor", "size": size, "image_mean": half, "image_std": half}

    def state(self) -> dict:
        """What a checkpoint contains in addition to weights and optimiser."""
        return {}

    def load_state(self, state: dict) -> None:
        pass


class PixelGPT:
    """ImageGPT: 16 x 16 pixels, each the nearest of 512 colours (Chen et al. 2020), predicted one after the other.

    Rows are the pixels without a start token, as `toto probe` reads it, so 255 of 256 are predicted. The picture is
    coarser than a Toto's 64 x 64 pixels: 32 x 32, iGPT's smallest, would be rows of 1,024 tokens for one picture.
    Dropout is off and the decay is 0.1, as in the Toto.
    """

    resolution, batch_size, weight_decay = 16, 32, 0.1
    note = "reads 16 x 16 pixels of 512 colours, coarser than the 64 x 64 (from 32 x 32) that the Toto reads"

    def __init__(self, **fields):
        """fields: of ImageGPTConfig, in place of those of the study."""
        from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

        shape = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": MLP, "vocab_size": 512 + 1}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = ImageGPTConfig(**shape | dropout | {"n_positions": self.resolution**2} | fields)
        self.model = ImageGPTForCausalImageModeling(config)
        self.base = self.model.transformer
        self.clusters: torch.Tensor | None = None  # (colours, 3) in [-1, 1]

    def encode(self, pictures: torch.Tensor, seed: int) -> torch.Tensor:
        """uint8 (N, R, R, 3) -> int16 (N, R, R), the colours being k-means of these pixels where there are none yet.

        Raises:
            ValueError: scikit-learn is missing.
        """
        if self.clusters is None:
            self.clusters = fit_colours(pictures, self.model.config.vocab_size - 1, seed)
        found = []
        for some in tqdm(pictures.split(64), desc="pixels to colours", unit="64 pictures", leave=False):
            pixels = some.flatten(1, 2).float() / 127.5 - 1  # as ImageGPTBackbone does
            nearest = torch.cdist(pixels, self.clusters.expand(len(pixels), -1, -1)).argmin(-1)
            found.append(nearest.to(torch.int16).view(some.shape[:3]))
        return torch.cat(found)

    def loss(self, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """int16 (B, R, R) -> () mean nats of a pixel."""
        ids = pictures.flatten(1).long()
        return self.model(input_ids=ids, labels=ids).loss

    def tokens(self) -> int:
        """Pixels of a picture."""
        return self.model.config.n_positions

    def flops(self) -> float:
        """Training FLOPs of a picture."""
        c = self.model.config
        head = self.tokens() * c.n_embd * (c.vocab_size - 1)
        return block_flops(c.n_layer, c.n_embd, c.n_inner, self.tokens(), causal=True) + 6 * head

    def preprocessor(self) -> dict:
        size = {"height": self.resolution, "width": self.resolution}
        return {"image_processor_type": "ImageGPTImageProcessor", "size": size, "clusters": self.clusters.tolist()}

    def state(self) -> dict:
        """What a checkpoint contains in addition to weights and optimiser."""
        return {"clusters": self.clusters}

    def load_state(self, state: dict) -> None:
        self.clusters = state["clusters"]


PEERS = {"mae": MaskedAutoencoder, "igpt": PixelGPT}


def fit_colours(pictures: torch.Tensor, count: int, seed: int, sample: int = 200_000) -> torch.Tensor:
    """k-means of up to `sample` pixels of uint8 (N, R, R, 3): float32 (count, 3) in [-1, 1]."""
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ModuleNotFoundError as error:
        raise ValueError("ImageGPT's colours need scikit-learn: pip install 'modeling-toto[demo]'.") from error
    pixels = pictures.reshape(-1, 3)
    some = torch.randint(len(pixels), (sample,), generator=torch.Generator().manual_seed(seed))
    points = (pixels[some].float() / 127.5 - 1).numpy()
    means = MiniBatchKMeans(count, random_state=seed, batch_size=4096, n_init=1).fit(points).cluster_centers_
    return torch.tensor(means, dtype=torch.float32)


def augmented(pictures: torch.Tensor, generator: torch.Generator, shift: int = 4) -> torch.Tensor:
    """(B, R, R, ...) pixels or colours -> the same, half of them mirrored, moved by up to `shift` (edges repeated)."""
    side = pictures.shape[1]
    moves = torch.randint(-shift, shift + 1, (len(pictures), 2), generator=generator)
    flips = torch.rand(len(pictures), generator=generator) < 0.5
    rows, columns = ((torch.arange(side) + moves[:, axis, None]).clamp(0, side - 1) for axis in (0, 1))  # (B, R)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    return pictures[torch.arange(len(pictures))[:, None, None], rows[:, :, None], columns[:, None, :]]


@torch.no_grad()
def validation_loss(peer, pictures: torch.Tensor) -> float:
    """Mean loss of encoded pictures; the masks are always the same ones."""
    generator = torch.Generator().manual_seed(0)
    peer.model.eval()
    total = 0.0
    for some in pictures.split(peer.batch_size):
        total += peer.loss(some, generator).item() * len(some)
    peer.model.train()
    return total / len(pictures)


def order(step: int, batch_size: int, total: int, seed: int) -> torch.Tensor:
    """Which pictures step `step` (from 0) reads (B,): every epoch is a permutation of its own, so that nothing but the
    step's number decides."""
    places = torch.arange(step * batch_size, (step + 1) * batch_size)
    found = []
    for epoch in range(int(places[0]) // total, int(places[-1]) // total + 1):
        rows = torch.randperm(total, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
        found.append(rows[places[places // total == epoch] % total])
    return torch.cat(found)
