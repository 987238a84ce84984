"""Frames drawn with several places per forward against one place per forward, both by `generate_frames`."""

import sys
from functools import partial

from timing import alternate, spread


def add_flags(parser) -> None:
    parser.add_argument(
        "--models",
        nargs="+",
        default=["checkpoints/toto-motion=motion", "checkpoints/toto-nano=cluttered"],
        help="FOLDER=VARIANT: a model, and the variant of the embedded world whose test clips it continues",
    )
    parser.add_argument("--prompts", type=int, default=20, help="clips whose ids are compared and forwards counted")
    parser.add_argument("--num_frames", type=int, help="frames drawn; by default half of the model's")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0], help="0: the most likely code")
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32, 64], help="places per forward")
    parser.add_argument("--timed_models", type=int, default=1, help="how many of the models, from the first, are timed")
    parser.add_argument("--timed_widths", type=int, nargs="*", default=[8, 16, 32, 64], help="of these, those timed")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="rows drawn at a time when timed")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each batch, after one unmeasured")
    parser.add_argument(
        "--whole_room", action="store_true", help="also time the step whose shapes do not depend on the length"
    )
    parser.add_argument("--compiled", action="store_true", help="also time that step after torch.compile")


def measure(args) -> dict:
    """Counts do not depend on the machine; seconds are those of whole calls in alternation, the prompt's pass included.

    A row's tokens per forward are those it would have alone. In a batch, rows wait for each other at the end of a
    frame, so a batch needs more forwards than any of its rows. With the same seed both sides must draw the same ids.
    """
    import torch

    from modeling_toto import TotoForCausalLM, generation_toto, parallel_toto
    from tokenization import TotoProcessor
    from training.engine.device import flush_denormals

    flush_denormals()
    windows, plain_window = [], generation_toto.ParallelWindow

    def remembered(*options):
        windows.append(plain_window(*options))
        return windows[-1]

    generation_toto.ParallelWindow = remembered
    ratios, values = {}, {}
    for index, (folder, _, variant) in enumerate(name.partition("=") for name in args.models):
        model = TotoForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        half = model.config.num_frames // 2
        prompt = prompts(TotoProcessor.from_pretrained(folder), variant, args.prompts, half)
        name, num_frames = folder.rstrip("/").split("/")[-1], args.num_frames or half
        tokens = num_frames * model.config.tokens_per_frame
        for temperature in args.temperatures:

            def draw(rows, parallel=None, compiled=False, model=model, num_frames=num_frames, temperature=temperature):
                options = {"parallel": parallel, "compiled": compiled, "generator": torch.Generator().manual_seed(0)}
                return model.generate_frames(rows, num_frames, temperature, **options)

            about = f"{name}_temperature{temperature:g}"
            expected = draw(prompt)
            for width in args.widths:
                same = (draw(prompt, width) == expected).all(dim=1).sum().item()
                forwards = torch.stack(windows.pop().forwards)  # (frames, B)
                values[f"{about}_parallel{width}"] = {
                    "same_ids": same,
                    "of_prompts": len(prompt),
                    "tokens_per_forward": spread([tokens / count for count in forwards.sum(dim=0).tolist()]),
                    "tokens_per_forward_in_batch": tokens / forwards.amax(dim=1).sum().item(),
                }
                print(f"{about}, {width} places: {values[f'{about}_parallel{width}']}", file=sys.stderr)
            if index >= args.timed_models:
                continue
            for batch in args.batches:
                rows = prompt[:batch]
                sides = {"ordinary": partial(draw, rows)}
                sides |= {f"parallel{width}": partial(draw, rows, width) for width in args.timed_widths}
                if args.whole_room:
                    sides["whole_room"] = partial(uncompiled, parallel_toto, partial(draw, rows, compiled=True))
                if args.compiled:
                    sides["compiled"] = partial(draw, rows, compiled=True)
                seconds = alternate(sides, args.rounds)
                windows.clear()
                for side, measured in seconds.items():
                    values[f"{about}_batch{batch}_{side}_tokens_per_second"] = spread(
                        [batch * tokens / second for second in measured]
                    )
                    if side != "ordinary":
                        ratio = spread(seconds["ordinary"])["median"] / spread(measured)["median"]
                        ratios[f"{about}_batch{batch}_{side}_vs_ordinary"] = ratio
                        print(f"{about}, batch {batch}, {side}: {ratio:.2f} times ordinary", file=sys.stderr)
    about = {"models": args.models, "num_frames": args.num_frames, "rounds": args.rounds}
    return {"ratios": ratios, "values": values} | about


def prompts(processor, variant: str, count: int, num_frames: int):
    """Rows of the first frames of the first test clips of a variant of the embedded world."""
    import numpy as np

    from tokenization.sequences import video_rows
    from tokenization.toyworld import open_world

    world = open_world(variant, "test", resolution=processor.resolution)
    clips = (np.ascontiguousarray(world.clip(index)["video"][:num_frames]) for index in range(count))
    return video_rows(np.stack([processor.encode_frames(clip) for clip in clips]), end=False)


def uncompiled(parallel_toto, call):
    """`call` with the step that reads the whole room, as it is without torch.compile."""
    compiled_forward = parallel_toto.compiled_forward
    parallel_toto.compiled_forward = lambda: parallel_toto.forward
    try:
        return call()
    finally:
        parallel_toto.compiled_forward = compiled_forward
