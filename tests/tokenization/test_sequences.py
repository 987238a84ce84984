"""Rows of ids follow the paper's layout and give their codes back."""

import numpy as np
import pytest
import torch

from tokenization import sequences as seq


def test_the_ids_are_the_papers():
    assert (seq.PAD_ID, seq.VIDEO_START_ID, seq.END_ID, seq.IMAGE_START_ID, seq.CODE_OFFSET) == (0, 1, 2, 3, 64)
    assert seq.vocab_size(8192) == 8256


def test_a_video_row_is_start_frames_in_time_and_raster_order_end():
    codes = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2)
    rows = seq.video_rows(codes)
    assert rows.shape == (2, 14) and rows.dtype == torch.int64
    assert rows[0].tolist() == [1, *range(64, 76), 2]
    assert rows[1].tolist() == [1, *range(76, 88), 2]
    assert torch.equal(seq.video_rows(codes, end=False), rows[:, :-1])
    assert torch.equal(seq.video_rows(codes.flatten(1)), rows)


def test_sixteen_frames_of_the_paper_make_a_row_of_4098():
    assert seq.video_rows(torch.zeros(1, 16, 16, 16, dtype=torch.long)).shape == (1, 4098)


def test_images_alone_and_in_packs():
    codes = torch.arange(3 * 4).view(3, 2, 2)
    assert seq.image_rows(codes)[1].tolist() == [3, 68, 69, 70, 71, 2]
    assert seq.image_rows(codes[None]).tolist() == [[3, *range(64, 76), 2]]
    assert seq.image_rows(codes[None], end=False).shape == (1, 13)


def test_numpy_uint16_as_read_from_shards():
    codes = np.array([[40000, 1, 2, 3]], dtype=np.uint16)
    assert seq.video_rows(codes).tolist() == [[1, 40064, 65, 66, 67, 2]]


@pytest.mark.parametrize("end", [True, False])
def test_codes_come_back(end):
    codes = torch.randint(0, 1000, (3, 5, 4, 6))
    assert torch.equal(seq.codes_of(seq.video_rows(codes, end=end), (4, 6)), codes)
    assert torch.equal(seq.codes_of(seq.image_rows(codes, end=end), (4, 6)), codes)
    padded = torch.nn.functional.pad(seq.video_rows(codes, end=end), (0, 7), value=seq.PAD_ID)
    assert torch.equal(seq.codes_of(padded, (4, 6)), codes)
    assert torch.equal(seq.codes_of(seq.video_rows(codes)[0], (4, 6)), codes[:1])


def test_code_positions():
    assert seq.code_positions(torch.tensor([[1, 64, 100, 2, 0, 63]])).tolist() == [
        [False, True, True, False, False, False]
    ]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: seq.codes_of(torch.tensor([[1, 64, 65, 66, 2]]), (2, 2)),
            "3 codes, which is not a whole number of 2 x 2",
        ),
        (lambda: seq.codes_of(torch.tensor([[1, 2]]), (2, 2)), "0 codes"),
        (lambda: seq.codes_of(torch.tensor([[64, 65], [64, 2]]), (1, 1)), "different numbers"),
        (lambda: seq.codes_of(torch.zeros(1, 2, 3), (1, 1)), r"\(B, L\)"),
        (lambda: seq.video_rows(torch.zeros(1, 4)), "integers"),
        (lambda: seq.video_rows(torch.tensor([[-1]])), "0 or more"),
        (lambda: seq.video_rows(torch.zeros(4, dtype=torch.long)), "Video codes must be"),
        (lambda: seq.image_rows(torch.zeros(2, 4, dtype=torch.long)), "Image codes must be"),
    ],
)
def test_wrong_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
