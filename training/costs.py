"""What a training step costs a device: memory computed from the code, time estimated from the device's data sheet."""

from __future__ import annotations

from dataclasses import dataclass

from training.engine.data_sheets import Gpu

# Shares of the data sheet's peaks that are assumed to be reached by matrix products, by causal attention (half of the
# square counted), and by everything that only moves memory. Ours, not measured here; a test compares the estimate with
# runs that others have published (docs/scaling.md).
PRODUCTS, ATTENTION, TRAFFIC = 0.6, 0.35, 0.8
# Bytes per token and block that a training step moves beside its matrix products and attention, in bfloat16 with a
# float32 residual stream: for each unit of the width, and of the MLP's width. Eager: all that the operations read and
# write, counted by a test (573 KB for base, 1,412 KB for 1b). Compiled: in the proportion of base, where the kernels
# that torch.compile made move 147 KB.
MOVED = {"eager": (565, 45), "compiled": (145, 11.5)}
# Bytes per logit: the product's output, log-softmax, its exponential, and the gradient, in chunks.
MOVED_LOGIT = 20
# Bytes per parameter: in a micro-batch (weights cast to bfloat16 twice, gradient written and added), and in a step
# (norm, clipping, and AdamW's reads and writes).
MOVED_MICRO, MOVED_STEP = 24, 40


@dataclass(frozen=True)
class Step:
    """The share of a training step that one device computes.

    Fields:
        config: the TotoConfig, which defines the blocks and the row. parameters: of the whole model.
        flops_per_token: training FLOPs per token, without recomputation. has_attention: False for a Mamba.
        rows, accumulation: rows per micro-batch, micro-batches per step.
        gpus, is_sharded: number of devices, and whether FSDP2 divides weights, gradients and moments among them.
        precision: "bf16" or "fp32", of products and stored activations.
        mode: "eager" or "compiled". checkpointing: whether the blocks' activations are recomputed.
        by_muon: the parameters that Muon trains, with one moment instead of two.
    """

    config: object
    parameters: int
    rows: int
    accumulation: int
    checkpointing: bool
    gpus: int
    is_sharded: bool
    precision: str = "bf16"
    mode: str = "eager"
    by_muon: int = 0
    flops_per_token: float = 0.0
    has_attention: bool = True

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.rows * self.config.max_position_embeddings


def seconds_per_token(step: Step, gpu: Gpu) -> float:
    """Estimated seconds that a device needs per token of training, validation and checkpoints left out.

    The sum of products, attention and memory traffic, each at its assumed share of the data sheet's peak: kernels do
    not overlap. Recomputation repeats the forward pass of the blocks, a third of their cost. Not included: the exchange
    of gradients, waiting for data, and the launch of kernels, which dominates in models far smaller than base.
    """
    config = step.config
    d, layers = config.hidden_size, config.num_hidden_layers
    again = 4 / 3 if step.checkpointing else 1.0
    attention = 6 * layers * d * config.max_position_embeddings if step.has_attention else 0
    head = 6 * config.vocab_size * d
    products = (step.flops_per_token - attention - head) * again + head
    of_width, of_mlp = MOVED[step.mode]
    moved = layers * (of_width * d + of_mlp * config.intermediate_size) * again + MOVED_LOGIT * config.vocab_size
    moved += (MOVED_MICRO + MOVED_STEP / step.accumulation) * step.parameters / step.tokens
    if step.precision == "fp32":
        moved *= 2
    peak, bandwidth = 1e12 * gpu.tflops, 1e9 * gpu.bandwidth_gbs
    return products / (PRODUCTS * peak) + attention * again / (ATTENTION * peak) + moved / (TRAFFIC * bandwidth)


def block_bytes(config, precision: str) -> int:
    """Bytes per token that a block stores for its backward pass (modeling_toto/block_toto.py).

    The residual stream before and after the attention is stored in float32; queries, keys, values, the output of the
    attention, and the gate and up projections are stored in `precision` ("bf16" or "fp32").
    """
    size = 2 if precision == "bf16" else 4
    return 4 * 2 * config.hidden_size + size * (4 * config.hidden_size + 2 * config.intermediate_size)


def memory_of(step: Step) -> dict[str, float]:
    """Bytes on one device by purpose at the peak of a step; computed, not measured on a GPU.

    weights, moments: float32; AdamW has two moments, Muon one.
    gradients: float32, in the buckets of DDP; FSDP2 also holds them unsharded while it accumulates. One device that
        does not accumulate has them only as the activations go: what exceeds the activations is counted.
    activations: `block_bytes` of every block; with gradient checkpointing, the residual stream between the blocks and
        `block_bytes` of one block.
    logits: 0, since the loss computes them in chunks.
    work: allocations of the backward pass of one block (4 MLP widths and 5 widths in `precision`, 4 widths in float32),
        the gradient of the head in float32, and the weights of one block cast to `precision`. FSDP2 prefetches the next
        block, which adds the weights and gradients of two blocks, and the embeddings twice, all in float32.
    """
    config, parameters = step.config, step.parameters
    d, width, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    is_sharded = step.is_sharded and step.gpus > 1
    share = step.gpus if is_sharded else 1
    size = 2 if step.precision == "bf16" else 4
    block, head, kept = 4 * d * d + 3 * d * width, config.vocab_size * d, block_bytes(config, step.precision)
    activations = step.tokens * (4 * layers * d + kept if step.checkpointing else layers * kept)
    gradients = 4 * parameters / share
    if is_sharded:
        gradients += 4 * parameters if step.accumulation > 1 else 0
    elif step.gpus == 1 and step.accumulation == 1:
        gradients = max(0, gradients - activations)
    copies = size * block + (4 * (4 * block + 2 * head) if is_sharded else 0)
    return {
        "weights": 4 * parameters / share,
        "gradients": gradients,
        "moments": (8 * parameters - 4 * step.by_muon) / share,
        "activations": activations,
        "logits": 0,
        "work": step.tokens * (size * (4 * width + 5 * d) + 4 * 4 * d) + 4 * head + copies,
    }
