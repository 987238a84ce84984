"""A tiny Toto with its processor, in memory and on disk, for the tests of evaluation and of studies."""

import signal

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and their commands too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="package")
def processor():
    """A TotoProcessor: 32 x 32 pixels -> 4 x 4 tokens of 64 codes."""
    import torch

    from tokenization.configuration_vqgan import TotoVQGANConfig
    from tokenization.image_processing_toto import TotoImageProcessor
    from tokenization.modeling_vqgan import TotoVQGANModel
    from tokenization.processing_toto import TotoProcessor

    torch.manual_seed(0)
    config = TotoVQGANConfig(
        num_codes=64,
        embed_dim=8,
        base_channels=8,
        channel_multipliers=(1, 1, 1, 1),
        num_res_blocks=1,
        attention_resolutions=(),
        mid_attention=False,
        z_channels=8,
        norm_groups=4,
        resolution=32,
    )
    return TotoProcessor(TotoImageProcessor(resolution=32), TotoVQGANModel(config))


@pytest.fixture(scope="package")
def model():
    """A TotoForCausalLM: 3 blocks of width 32, rows of at most 4 frames of 16 codes."""
    import torch

    from modeling_toto import TotoConfig, TotoForCausalLM

    torch.manual_seed(1)
    config = TotoConfig(
        vocab_size=64 + 64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        tokens_per_frame=16,
        num_frames=4,
        max_position_embeddings=66,
        initializer_range=0.2,
    )
    return TotoForCausalLM(config).eval()


@pytest.fixture(scope="package")
def checkpoint(model, processor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
