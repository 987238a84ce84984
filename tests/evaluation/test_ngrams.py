"""`toto ngrams`: counts equal a brute-force count, measures fit known truths, bad input gets one sentence."""

import json
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from evaluation.ngrams import counting, measures
from evaluation.ngrams.args import NgramsArgs
from evaluation.ngrams.command import HOPELESS, main, spaced
from evaluation.ngrams.counting import ORDERS, Spectrum, count
from evaluation.ngrams.reading import open_frames
from evaluation.ngrams.results import NgramsResult
from evaluation.ngrams.tables import table
from tokenization.sampling import Sampling

SHAPE = (7, 3, 4, 5)  # N, T, h, w
K = 6


@pytest.fixture(scope="module")
def codes():
    """Codes of which one is not used and the others are used unequally, so that n-grams repeat."""
    return np.random.default_rng(0).choice(K, SHAPE, p=[0.4, 0.3, 0.2, 0.06, 0.04, 0]).astype(np.uint16)


def runs(codes, order, n):
    """(number of the frame, n-gram) of every place, one by one."""
    clips, frames, h, w = codes.shape
    grids = codes.tolist()
    for c in range(clips):
        for t in range(frames):
            grid, frame = grids[c][t], c * frames + t
            flat = [code for line in grid for code in line]
            if order == "raster":
                yield from ((frame, tuple(flat[i : i + n])) for i in range(h * w - n + 1))
            elif order == "horizontal":
                yield from ((frame, tuple(line[x : x + n])) for line in grid for x in range(w - n + 1))
            elif order == "vertical":
                columns = [[line[x] for line in grid] for x in range(w)]
                yield from ((frame, tuple(column[y : y + n])) for column in columns for y in range(h - n + 1))
            elif t >= n - 1:
                yield from (
                    (frame, tuple(grids[c][t - n + 1 + k][y][x] for k in range(n))) for y in range(h) for x in range(w)
                )


def as_dict(spectrum):
    return dict(zip(spectrum.times.tolist(), spectrum.kinds.tolist(), strict=True))


@pytest.mark.parametrize("at_once", [1, 50, counting.AT_ONCE])
@pytest.mark.parametrize("order", ORDERS)
def test_counts_equal_a_brute_force_count(codes, order, at_once, monkeypatch):
    """With few n-grams sorted together and blocks of a single clip too, so that the borders of both are crossed."""
    if at_once < counting.AT_ONCE:
        monkeypatch.setattr(counting, "BLOCK", 7)
    for n in range(1, min(4, counting.longest(order, SHAPE[1:])) + 1):
        found = count(codes, K, order, n, at_once)
        seen = list(runs(codes, order, n))
        brute = Counter(run for _, run in seen)
        assert as_dict(found.spectrum) == Counter(brute.values())
        prefixes = Counter(run[:-1] for _, run in seen)
        assert as_dict(found.prefixes) == Counter(prefixes.values())
        first = {}
        for frame, run in seen:
            first.setdefault(run, frame)
        frames = SHAPE[0] * SHAPE[1]
        places = Counter(frame for frame, _ in seen)
        points = list(range(1, frames + 1))
        distinct, totals = found.growth(points)
        assert distinct.tolist() == [sum(f < m for f in first.values()) for m in points]
        assert totals.tolist() == [sum(places[f] for f in range(m)) for m in points]


def test_only_raster_crosses_line_ends_and_nothing_crosses_images():
    """Every line is 0 1 2 and every image starts anew: 2 0 stands at line ends only, and frames differ by 3."""
    frame = np.arange(3)[None].repeat(3, 0)
    codes = np.stack([frame, frame + 3, frame + 6, frame + 9]).reshape(2, 2, 3, 3).astype(np.uint16)

    def pairs(order):
        found = count(codes, 12, order, 2)
        return found.spectrum.distinct, found.spectrum.total

    assert pairs("horizontal") == (8, 24)  # 0 1 and 1 2
    assert pairs("raster") == (12, 32)  # 2 0 too, and no 2 3
    assert pairs("vertical") == (12, 24)  # 0 0, 1 1 and 2 2
    assert pairs("time") == (6, 18)  # inside a clip: 0 3, not 3 6


def test_codes_of_sixteen_bits_fill_the_integer():
    codes = np.array([0, 65535, 65535, 0, 1, 65535], np.uint16).reshape(1, 1, 1, 6)
    found = count(codes, 65536, "raster", 4)
    assert as_dict(found.spectrum) == {1: 3}
    with pytest.raises(ValueError, match="at most 64 bits"):
        count(codes, 65536, "raster", 5)
    with pytest.raises(ValueError, match="1 to 1 codes"):
        count(codes, 65536, "time", 2)


# --- measures


@pytest.fixture(scope="module")
def uniform():
    """Independent, uniform codes: 400 images of 8 x 8 codes of 64."""
    return np.random.default_rng(1).integers(0, 64, (400, 1, 8, 8)).astype(np.uint16)


def test_independent_uniform_codes_are_measured_as_such(uniform):
    singles = counting.code_counts(uniform, 64)
    for n, tolerance in ((1, 0.003), (2, 0.02), (3, 0.12)):
        found = count(uniform, 64, "horizontal", n)
        kinds, total = 64**n, found.spectrum.total
        (expected,) = measures.expected_distinct(singles, n, [total])
        assert found.spectrum.distinct == pytest.approx(kinds * (1 - (1 - 1 / kinds) ** total), rel=0.01)
        assert found.spectrum.distinct == pytest.approx(expected, rel=0.01)
        assert measures.unseen_mass(found.spectrum) == pytest.approx((1 - 1 / kinds) ** (total - 1), abs=0.01)
        bits = measures.entropy(found.spectrum) - measures.entropy(found.prefixes)
        assert bits == pytest.approx(6, abs=tolerance)
        assert measures.entropy(found.spectrum) >= measures.plain_entropy(found.spectrum)
    # 3-grams of 262,144 kinds from 19,200 places: the plain estimate is far off
    plain = measures.plain_entropy(found.spectrum) - measures.plain_entropy(found.prefixes)
    assert plain < 3


def test_a_copied_neighbour_needs_no_bits(uniform):
    copied = uniform.repeat(2, axis=3)[:, :, :, :8]  # a a b b ...
    found = count(copied, 64, "horizontal", 2)
    assert measures.plain_entropy(found.spectrum) - measures.plain_entropy(found.prefixes) < 4
    still = np.repeat(uniform, 3, axis=1)
    found = count(still, 64, "time", 2)
    assert measures.plain_entropy(found.spectrum) == pytest.approx(measures.plain_entropy(found.prefixes), abs=1e-9)
    assert measures.entropy(found.spectrum) == pytest.approx(measures.entropy(found.prefixes), abs=1e-9)


def brute_entropy(counts):
    """Chao, Wang and Jost (2013), term by term, in bits."""
    n, f1, f2 = sum(counts), counts.count(1), counts.count(2)
    nats = sum(x / n * sum(1 / k for k in range(x, n)) for x in counts)
    if f2:
        a = 2 * f2 / ((n - 1) * f1 + 2 * f2)
    else:
        a = 2 / ((n - 1) * (f1 - 1) + 2) if f1 else 1
    if a < 1:
        nats += f1 / n * (1 - a) ** (1 - n) * (-math.log(a) - sum((1 - a) ** r / r for r in range(1, n)))
    return nats / math.log(2)


@pytest.mark.parametrize(
    "counts", [[5, 3, 1, 1, 2], [1, 1, 1, 1], [4, 4], [9, 1], [7], [2, 2, 1], [30, 12, 1, 1, 1, 1, 1, 2]], ids=str
)
def test_entropy_is_that_of_the_published_formula(counts):
    assert measures.entropy(Spectrum.of(np.array(counts))) == pytest.approx(brute_entropy(counts), rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_expected_number_is_the_sum_over_all_ngrams(n):
    counts = np.array([50, 20, 20, 5, 3, 1, 1, 0])
    shares = counts / counts.sum()
    p = shares
    for _ in range(n - 1):
        p = np.multiply.outer(p, shares)
    totals = [0, 1, 30, 1000]
    found = measures.expected_distinct(counts, n, totals)
    assert found == pytest.approx([(1 - (1 - p) ** total).sum() for total in totals], rel=1e-4)


def test_the_expected_number_is_that_of_shuffled_codes(codes):
    """Although runs overlap: every code in another place."""
    rng = np.random.default_rng(0)
    codes = rng.choice(40, (100, 1, 8, 8), p=rng.dirichlet(np.ones(40))).astype(np.uint16)
    distinct = []
    for _ in range(20):
        shuffled = rng.permutation(codes.reshape(-1)).reshape(codes.shape)
        spectrum = count(shuffled, 40, "raster", 3).spectrum
        distinct.append(spectrum.distinct)
    (expected,) = measures.expected_distinct(counting.code_counts(codes, 40), 3, [spectrum.total])
    assert expected == pytest.approx(np.mean(distinct), rel=0.01)


def test_the_slope_of_a_power_law_is_found():
    counts = np.round(1e6 * np.arange(1, 5001.0) ** -0.8).astype(int)
    slope, last = measures.zipf_slope(Spectrum.of(counts))
    assert slope == pytest.approx(0.8, abs=0.01) and last == (counts >= measures.FREQUENT).sum()
    assert measures.zipf_slope(Spectrum.of(np.ones(1000, int))) is None


def test_ranks_are_those_of_the_sorted_counts():
    counts = np.random.default_rng(0).geometric(0.1, 300)
    ranks = measures.spaced_ranks(300)
    assert measures.rank_frequency(Spectrum.of(counts), ranks).tolist() == np.sort(counts)[::-1][ranks - 1].tolist()
    assert ranks[0] == 1 and ranks[-1] == 300


def test_compression_is_that_of_the_codes():
    rng = np.random.default_rng(0)
    random = rng.integers(0, 512, (200, 1, 8, 8)).astype(np.uint16)
    _, shares = measures.compression(random, 512)
    assert min(shares.values()) >= 1 and max(shares.values()) < 1.03  # nothing to be had
    _, shares = measures.compression(np.tile(random[:4], (50, 1, 1, 1)), 512)
    assert max(shares.values()) < 0.05
    taken, shares = measures.compression(random // 256, 512)  # one bit in nine
    assert taken == 12_800 and 1 / 9 < min(shares.values()) < 0.2
    # three codes take two bits, of which 1.58 are needed
    _, shares = measures.compression(random % 3, 3)
    assert 1 <= min(shares.values()) < 1.2


def test_points_are_log_spaced():
    assert spaced(120) == [1, 2, 5, 10, 20, 50, 100, 120] and spaced(1) == [1] and spaced(10) == [1, 2, 5, 10]


# --- the command


def write_shards(folder, codes, num_codes, kind="video", rows=2):
    """Shards as `toto tokenize` writes them, of codes (N, T, h, w), a few rows in a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    flat, shards = codes.reshape(len(codes), np.prod(codes.shape[1:])), []
    for start in range(0, len(flat), rows):
        part = flat[start : start + rows]
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1), pa.uint16()), part.shape[1])
        file = f"train-{len(shards):05d}.parquet"
        pq.write_table(pa.table({"codes": column}), folder / file)
        shards.append({"file": file, "rows": len(part)})
    manifest = {"format": 1, "kind": kind, "dataset": "d", "split": "train", "num_codes": num_codes, "resolution": 32}
    manifest |= {"grid": list(codes.shape[2:]), "num_frames": codes.shape[1], "shards": shards}
    manifest |= {"tokenizer": {"fingerprint": "f"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)


def test_shards_are_counted_and_written(codes, tmp_path, capsys):
    clips = write_shards(tmp_path / "clips", codes, K)
    images = write_shards(tmp_path / "images", codes.reshape(-1, 1, *SHAPE[2:]), K, "image")
    file = tmp_path / "out" / "n.json"
    main(["--shards", clips, images, "--output", str(file), "--max_frames", "19"])
    content = json.loads(file.read_text())
    result = NgramsResult.from_json(content)
    assert result.to_json() == content and result.other == {} and file.with_suffix(".png").is_file()
    of_clips, of_images = result.tokens
    assert (of_clips.frames, of_images.frames) == (18, 19)  # whole clips
    assert list(of_clips.orders) == list(ORDERS) and list(of_images.orders) == list(ORDERS[:3])
    for order, found in of_clips.orders.items():
        for each in found:
            brute = Counter(run for _, run in runs(codes[:6], order, each.n))
            assert each.distinct == len(brute) and each.total == brute.total()
            assert each.seen_once == list(brute.values()).count(1) == round(each.unseen * each.total)
            assert each.counts[0] == max(brute.values()) and each.ranks[-1] == each.distinct
            assert each.growth[-1] == each.distinct and len(each.growth) == len(of_clips.growth_frames)
            assert each.plain_entropy == pytest.approx(conditional(brute))
            seen = count(codes[:6], K, order, each.n)
            bits = measures.entropy(seen.spectrum) - measures.entropy(seen.prefixes)
            assert each.entropy is None if each.unseen > HOPELESS else each.entropy == pytest.approx(bits)
            singles = counting.code_counts(codes[:6], K)
            (expected,) = measures.expected_distinct(singles, each.n, [each.total])
            assert each.independent == each.growth_independent[-1] == pytest.approx(expected)
    assert [each.n for each in of_clips.orders["time"]] == [2, 3]  # a clip has three frames
    assert [each.n for each in of_clips.orders["raster"]] == [1, 2, 3, 4]
    assert of_clips.codes_used == 5 and result.command.startswith("toto ngrams --shards")
    printed = capsys.readouterr().out
    assert f"next: toto pretrain --recipe tiny_cpu --shards {clips}" in printed
    assert "5 of 6 codes in use" in printed and "zlib" in printed and str(file.with_suffix(".png")) in printed


def conditional(brute):
    """Entropy in bits of the last code given those before it."""
    total, prefixes = brute.total(), defaultdict(int)
    for run, times in brute.items():
        prefixes[run[:-1]] += times
    return -sum(times / total * math.log2(times / prefixes[run[:-1]]) for run, times in brute.items())


def test_a_data_set_is_encoded_as_toto_tokenize_does(tmp_path, processor):
    """The same counts from pixels by two tokenizers and from the shards of one; and tokens at another resolution."""
    from tokenization.tokenize_dataset import main as tokenize

    processor.save_pretrained(tmp_path / "tokenizer")
    name, data = str(tmp_path / "tokenizer"), ["--dataset", "toyworld:motion", "--num_frames", "4"]
    tokenize([*data, "--split", "test", "--tokenizer", name, "--max_clips", "3", "--output", str(tmp_path / "shards"),
              "--resolution", "64", "--precision", "fp32"])  # fmt: skip
    found = []
    for flags in ([*data, "--tokenizer", name, name, "--resolution", "64"], ["--shards", str(tmp_path / "shards")]):
        main([*flags, "--max_frames", "13", "--n", "2", "--output", str(tmp_path / "n.json")])
        found += NgramsResult.from_json(json.loads((tmp_path / "n.json").read_text())).tokens
    assert {each.frames for each in found} == {12} and {tuple(each.grid) for each in found} == {(8, 8)}
    first, *others = [
        {order: [(e.n, e.distinct, e.total) for e in of] for order, of in each.orders.items()} for each in found
    ]
    assert others == [first, first] and list(first) == list(ORDERS)
    assert {each.fingerprint for each in found} == {processor.fingerprint}


def test_frames_are_read_as_asked(monkeypatch):
    monkeypatch.setattr("tokenization.sources.open.open_source", lambda dataset, split, sampling, **others: sampling)
    args = NgramsArgs(dataset="clips", num_frames=8, fps=5.0, resize="decoder")
    assert open_frames(args, 64) == Sampling(8, fps=5.0, resolution=64, resize="decoder")


def test_images_have_no_time(tmp_path, processor, capsys):
    processor.save_pretrained(tmp_path / "tokenizer")
    main(["--dataset", "toyworld:photos", "--tokenizer", str(tmp_path / "tokenizer"), "--max_frames", "70", "--n", "1"])
    printed = capsys.readouterr().out
    assert "70 frames of toyworld:photos, test, 4 x 4 codes each" in printed
    rows = [line.split()[:2] for line in printed.splitlines() if line.startswith((*ORDERS,))]
    assert rows == [["raster", "1"]]


@pytest.fixture(scope="module")
def bad(tmp_path_factory, processor, codes):
    """A folder of things that cannot be counted."""
    tmp_path = tmp_path_factory.mktemp("bad")
    processor.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos" / "test").mkdir(parents=True)
    (tmp_path / "photos" / "test" / "a.png").write_bytes(b"no picture")
    write_shards(tmp_path / "shards", codes, K)
    write_shards(tmp_path / "beyond", codes, 4)
    write_shards(tmp_path / "wide", codes.reshape(7, 3, 2, 10), K)
    write_shards(tmp_path / "none", codes[:0], K)
    write_shards(tmp_path / "large", codes, 16384)
    write_shards(tmp_path / "huge", codes, 65537)
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "Pass either --dataset .*or --shards"),
        ("--dataset toyworld --shards {0}/shards", "Pass either --dataset"),
        ("--dataset toyworld --split evening", "evening"),
        ("--dataset {0}/photos --split evening", "evening"),
        ("--dataset {0}/photos --tokenizer {0}/tokenizer", "No picture of .*photos, split test, could be used"),
        ("--dataset {0}/photos --tokenizer {0}/tokenizer --stride 2", "--stride would have no effect on images"),
        ("--dataset {0}/empty", "empty"),
        ("--dataset {0}/nowhere/there", "There is no folder or file"),
        ("--dataset toyworld --tokenizer {0}/nowhere/there", "There is no tokenizer"),
        ("--dataset toyworld --tokenizer {0}/tokenizer --resolution 36", "not a multiple"),
        ("--dataset toyworld --tokenizer {0}/tokenizer --max_frames 8", "a clip has 16 frames; raise it"),
        ("--dataset toyworld --stride 2", "--stride would have no effect on toyworld"),
        ("--dataset toyworld --resize decoder", "--resize would have no effect on toyworld"),
        ("--shards {0}/shards --resize decoder", "--resize would have no effect with --shards"),
        ("--dataset {0}/photos --tokenizer {0}/tokenizer --resize decoder", "--resize would have no effect on images"),
        ("--shards {0}/huge --n 1", "huge has 65,537 codes; at most 65,536"),
        ("--dataset {0}/photos --fps 2 --stride 2", "--stride would have no effect next to --fps"),
        ("--dataset {0}/photos --fps 0", "--fps is 0; it must be above 0"),
        ("--dataset toyworld --kind sound", "--kind is 'sound'"),
        ("--shards {0}/shards --tokenizer {0}/tokenizer", "--tokenizer would have no effect with --shards"),
        ("--shards {0}/photos", "not a folder of token shards"),
        ("--shards {0}/beyond", "beyond holds code 4, but its tokenizer has 4 codes"),
        ("--shards {0}/none", "none holds no row"),
        ("--shards {0}/shards {0}/wide", "4 x 5 codes a frame and .*wide has 2 x 10"),
        ("--shards {0}/shards --max_frames 2", "--max_frames is 2, but a clip has 3 frames"),
        ("--shards {0}/shards --max_frames 0", "--max_frames is 0; it must be above 0"),
        ("--shards {0}/shards --n 0", "--n is 0; it must be above 0"),
        ("--shards {0}/shards --n 21", "--n is 21, but a frame of .* has only 20 codes"),
        ("--shards {0}/large --n 5", "--n is 5, but 5 codes of .*large, of 14 bits each, .* choose at most 4"),
        ("--shards {0}/shards --output counts.txt", "it must end in .json"),
    ],
)
def test_bad_input_is_one_sentence(bad, monkeypatch, flags, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(bad)
    before = sorted(bad.rglob("*"))
    with pytest.raises((ValueError, OSError), match=words) as error:
        main(flags.format(bad).split())
    assert "\n" not in str(error.value) and sorted(bad.rglob("*")) == before


def test_the_page_shows_the_committed_result():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "tokens.md").read_text()
    result = NgramsResult.from_json(json.loads((root / "docs" / "studies" / "ngrams.json").read_text()))
    assert table(result).strip("\n") in page and f"\n{result.command}\n" in page
