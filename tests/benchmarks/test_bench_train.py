"""What a compiled block moves through memory, against transformers' Llama, and the graphs of a training step."""

import argparse
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import bench_train


@pytest.fixture(scope="module")
def found() -> tuple[dict, dict]:
    parser = argparse.ArgumentParser()
    bench_train.add_flags(parser)
    # base's proportions and size of heads, a quarter as wide
    config = '{"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3, "num_hidden_layers": 1}'
    return bench_train.graphs(parser.parse_args(["--preset", "base", "--config", config]))


def test_a_compiled_block_moves_at_most_a_tenth_more_than_llamas(found):
    ratios, values = found
    assert all(ratio <= 1.1 for ratio in ratios.values()), found
    per_width = values["toto_compiled_bytes_beside_products"] / 192
    assert 140 < per_width < 190, found  # of base, 126 KB for 768 are 163


def test_a_training_step_is_one_graph(found):
    assert (found[1]["toto_graphs"], found[1]["toto_graph_breaks"]) == (1, 0)
