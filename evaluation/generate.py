"""`toto generate`: continues clips frame by frame; writes true, reconstructed and generated frames side by side."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.continuations.args import ScoreArgs
from evaluation.frame_counts import frame_counts
from tokenization.sampling import Sampling, TimeStepArgs
from tokenization.terminal.next_command import after_generate, first_video
from training.flags import idle, parse, refuse_idle, typed_flags

if TYPE_CHECKING:
    from tokenization.video import Clip


DESCRIPTION = "Continue clips: given some frames, generate the next ones."


@dataclass(frozen=True, kw_only=True)
class GenerateArgs(TimeStepArgs):
    model: str = field(metadata={"help": "Hub id, Hugging Face folder or run folder"})
    output: str = field(metadata={"help": "folder, or .mp4 or .gif file; a sheet (.png) is written next to it"})
    video: list[str] = field(
        default_factory=lambda: ["toyworld"],
        metadata={
            "help": "video files, folders of pictures, pictures (all together one clip, in this order), or test clips "
            "of the embedded world: toyworld[:VARIANT][:INDEX]"
        },
    )
    num_prompt_frames: int | None = field(
        default=None, metadata={"help": "true frames given to the model; by default half of the model's frames"}
    )
    num_frames: int | None = field(
        default=None,
        metadata={
            "help": "frames to generate; by default as many as fit the context, beyond which the oldest are dropped"
        },
    )
    temperature: float = field(default=1.0, metadata={"help": "sampling temperature; 0 takes the most likely token"})
    top_k: int | None = field(default=None, metadata={"help": "sample only from the k most likely tokens"})
    top_p: float | None = field(
        default=None, metadata={"help": "sample only from the most likely tokens with this total probability"}
    )
    drop_frames: int | None = field(
        default=None,
        metadata={"help": "oldest frames to drop at a time beyond the model's context; by default a quarter"},
    )
    recompute: bool = field(
        default=False,
        metadata={"help": "recompute the states of the remaining frames when frames are dropped: exact but slower"},
    )
    parallel: int | None = field(
        default=None, metadata={"help": "tokens of a frame drawn at once: the same video in fewer passes of the model"}
    )
    num_samples: int = field(default=1, metadata={"help": "continuations per clip"})
    seed: int = field(default=0, metadata={"help": "seed of the sampling"})
    score: bool = field(
        default=False,
        metadata={
            "help": "measure continuations of held-out clips of --dataset instead of drawing videos; "
            "`toto generate --score --help` lists the flags"
        },
    )
    compare: list[str] = field(
        default_factory=list,
        metadata={
            "help": "compare models by results of --score (.json) instead of drawing videos; `toto generate --compare "
            "--help` lists the flags"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_prompt_frames", "num_frames", "num_samples", "drop_frames", "parallel"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1.")
        if self.temperature < 0:
            raise ValueError(f"--temperature is {self.temperature:g}; it must be at least 0.")
        if len(prompts_of(self.video)) > 1 and Path(self.output).suffix in (".mp4", ".gif"):
            raise ValueError(f"--output is one file, but there are {len(self.video)} videos; make --output a folder.")


@dataclass(frozen=True)
class Drawing:
    """How new frames are drawn.

    Fields:
        temperature: of the tokens; 0 takes the most likely one.
        top_k: sample from the k most likely tokens only. top_p: from the fewest tokens with this probability.
        drop_frames, recompute: what happens beyond the model's context, as in `generate_frames`.
        parallel: tokens of a frame drawn at once, as in `generate_frames`.
        num_samples: continuations of the clip.
        seed: of the sampling.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    drop_frames: int | None = None
    recompute: bool = False
    parallel: int | None = None
    num_samples: int = 1
    seed: int = 0


def draw_continuation(
    model,
    processor,
    frames,
    num_prompt_frames: int | None = None,
    num_frames: int | None = None,
    *,
    progress: bool = False,
    **drawing,
) -> dict:
    """Give the model the first frames of a clip and generate the next ones (paper App. A.10).

    For example ``draw_continuation(model, processor, frames, num_frames=8, temperature=0.9, top_k=100)``.

    Args:
        model, processor: TotoForCausalLM and the TotoProcessor saved with it.
        frames: uint8 (T, R, R, 3); frames after the prompt are kept for comparison, and may be missing.
        num_prompt_frames: P; half of the model's frames by default. num_frames: G; the rest of its frames.
        progress: show a bar.
        drawing: the fields of `Drawing`: temperature, top_k, top_p, drop_frames, recompute, num_samples, seed.
    Returns:
        A dict of uint8 arrays: true (T', R, R, 3) and reconstructed (T', R, R, 3), with T' = min(T, P + G), the clip
        before and after the visual tokenizer; generated (num_samples, P + G, R, R, 3), the reconstructed prompt and
        the generated frames. num_prompt_frames, num_frames: P and G. seconds: time of the generation alone.
    Raises:
        ValueError: fewer frames than the prompt needs, or a prompt longer than the model's context.
    """
    import numpy as np
    import torch

    from tokenization.sequences import codes_of, video_rows

    how = Drawing(**drawing)
    prompt, new = frame_counts(model.config, num_prompt_frames, num_frames)
    if len(frames) < prompt:
        raise ValueError(f"The clip has {len(frames)} frames, but the prompt needs {prompt}; give a longer clip.")
    true = np.ascontiguousarray(frames[: prompt + new])
    codes = processor.encode_frames(true)[None]  # (1, T', h, w)
    ids = video_rows(codes[:, :prompt], end=False).expand(how.num_samples, -1).to(model.device)
    generator = torch.Generator().manual_seed(how.seed)
    began = time.perf_counter()
    drawn = model.generate_frames(
        ids,
        new,
        how.temperature,
        how.top_k,
        how.top_p,
        generator=generator,
        progress=progress,
        drop_frames=how.drop_frames,
        recompute=how.recompute,
        parallel=how.parallel,
    ).cpu()
    seconds = time.perf_counter() - began
    grid = processor.grid
    return {
        "true": true,
        "reconstructed": processor.decode(video_rows(codes, end=False))[0],
        "generated": np.stack([processor.decode(video_rows(codes_of(row, grid), end=False))[0] for row in drawn]),
        "num_prompt_frames": prompt,
        "num_frames": new,
        "seconds": seconds,
    }


def prompts_of(videos: list[str]) -> list[str | tuple[str, ...]]:
    """The clips that --video names: pictures, which are all frames of one clip, as one tuple of their paths.

    Raises ValueError for pictures next to other clips.
    """
    from tokenization.sources.kinds import kind_of

    pictures = [name.split(":")[0] != "toyworld" and kind_of(name) == "image" for name in videos]
    if not any(pictures):
        return list(videos)
    if not all(pictures):
        raise ValueError("--video has pictures and other clips; continue them with two commands.")
    return [tuple(videos)]


def read_video(
    name: str | tuple[str, ...],
    prompt: int,
    new: int,
    stride: int,
    fps: float | None,
    resolution: int,
    resize: str = Sampling.resize,
) -> Clip:
    """A clip of prompt + new frames, or of the prompt alone if a video has no more.

    name: a file; a folder of pictures, in the order of their names with numbers as numbers, or a tuple of pictures,
    which are a clip of one frame each; or toyworld[:VARIANT][:INDEX], a clip of the embedded world's test split, whose
    variant may have rules, as in toyworld:motion:pan=100:3.
    Raises ValueError or FileNotFoundError.
    """
    from tokenization.video import Clip, read_clip

    if isinstance(name, tuple) or Path(name).is_dir():
        return _read_pictures(name, prompt, new, resolution)
    if name.split(":")[0] != "toyworld":
        try:
            return read_clip(name, Sampling(prompt + new, stride, fps, resolution, resize=resize))
        except ValueError:
            return read_clip(name, Sampling(prompt, stride, fps, resolution, resize=resize))

    from tokenization.sources.open import TOYWORLD_FPS
    from tokenization.toyworld import open_world

    parts = name.split(":")[1:]
    index = parts.pop() if parts and parts[-1].isdigit() else "0"
    if len(parts) > (2 if parts[:1] in (["motion"], ["turntable"]) else 1):
        raise ValueError(
            f"--video {name} is not valid; write toyworld:INDEX, toyworld:VARIANT:INDEX or toyworld:motion:RULES:INDEX."
        )
    world = open_world(":".join(parts) or "simple", "test", resolution=resolution, num_frames=prompt + new)
    item = world.clip(int(index))
    return Clip(item["video"], item["clip_id"], 0, TOYWORLD_FPS, {})


def _read_pictures(name: str | tuple[str, ...], prompt: int, new: int, resolution: int) -> Clip:
    """A clip of pictures, for `read_video`."""
    import re
    from dataclasses import replace

    from tokenization.sources.kinds import kind_of
    from tokenization.sources.open import TOYWORLD_FPS
    from tokenization.sources.pictures import frame_windows

    if isinstance(name, str):
        files = [str(file) for file in Path(name).iterdir() if file.is_file() and kind_of(file) == "image"]
        files.sort(key=lambda file: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file)])
    else:
        files, name = list(name), name[0]
    if len(files) < prompt:
        if not files and (video := first_video(name)):
            raise ValueError(f"--video {name} is a folder of videos; name the ones to continue, such as {video}.")
        raise ValueError(f"--video {name}: {len(files)} pictures, but the prompt needs {prompt}; give more of them.")
    length = prompt + new if len(files) >= prompt + new else prompt
    clip = next(frame_windows(files, name, Sampling(length, stride=1, resolution=resolution), None))
    return replace(clip, fps=TOYWORLD_FPS)  # pictures have no clock


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    if "compare" in typed_flags(argv):
        from evaluation.continuations.comparison import main as compare

        compare(argv)
        return
    drawing, scoring = ({each.name for each in fields(kind)} for kind in (GenerateArgs, ScoreArgs))
    if "score" in typed_flags(argv):
        refuse_idle(argv, tuple(sorted(drawing - scoring)), "with --score, which continues the clips of --dataset")

        from evaluation.continuations.command import main as score

        score(argv)
        return
    refuse_idle(argv, tuple(sorted(scoring - drawing)), "without --score")

    (args,) = parse((GenerateArgs,), argv, "toto generate", DESCRIPTION)
    if args.temperature == 0:
        refuse_idle(argv, ("top_k", "top_p"), "at --temperature 0, which takes the most likely token")
    if "fps" in typed_flags(argv):
        refuse_idle(argv, ("stride",), "next to --fps")
    videos = prompts_of(args.video)
    if any(isinstance(name, tuple) or Path(name).is_dir() for name in videos):
        refuse_idle(argv, ("stride", "fps", "resize"), "on pictures, each of which is one frame")
    if all(name.split(":")[0] == "toyworld" for name in args.video):
        refuse_idle(argv, ("stride", "fps", "resize"), "on toyworld, which is drawn")

    import torch

    from evaluation.backbones.contract import default_device
    from evaluation.results import command_line
    from evaluation.unlike_training import trained_on, unlike_training
    from modeling_toto import TotoForCausalLM
    from tokenization.processing_toto import TotoProcessor
    from training.find_model import resolve_model

    path = resolve_model(args.model)
    device = default_device()
    model = TotoForCausalLM.from_pretrained(path, dtype=torch.float32).eval().to(device)
    processor = TotoProcessor.from_pretrained(path).to(device)
    prompt, new = frame_counts(model.config, args.num_prompt_frames, args.num_frames)
    times = {} if all(name.split(":")[0] == "toyworld" for name in args.video) else {"stride": args.stride}
    times |= {"fps": args.fps} if times else {}
    for sentence in unlike_training(model.config, processor, prompt + new, trained_on(path), **times):
        print(f"warning: {sentence}")
    if prompt + new <= model.config.context_frames and (ignored := idle(argv, "drop_frames", "recompute")):
        print(f"{ignored}: no effect, since {prompt + new} frames fit into the model's row")
    command = command_line("generate", argv)
    for name in videos:
        generate(model, processor, name, args, command)
    after_generate(args.model, args.output)


def generate(model, processor, name: str | tuple[str, ...], args: GenerateArgs, command: str) -> None:
    """Continue one of --video; write its movie, its sheet and its result.

    model, processor: TotoForCausalLM and the TotoProcessor saved with it. command: as it was typed.
    """
    from evaluation.pictures import panel, sheet, write_movie
    from evaluation.results import GenerationResult
    from modeling_toto.decoding_toto import frames_to_drop
    from tokenization.files import write_json
    from tokenization.terminal.progress import bars_of_models
    from training.engine.device import versions

    prompt, new = frame_counts(model.config, args.num_prompt_frames, args.num_frames)
    clip = read_video(name, prompt, new, args.stride, args.fps, processor.resolution, args.resize)
    if isinstance(name, tuple):
        name = name[0]  # which names the files
    if len(clip.frames) < prompt + new:
        print(f"{name}: shorter than {prompt + new} frames, so there are no true frames next to the generated ones")
    drawing = {each.name: getattr(args, each.name) for each in fields(Drawing)}
    with bars_of_models():
        result = draw_continuation(model, processor, clip.frames, prompt, new, progress=True, **drawing)
    movie = Path(args.output)
    if movie.suffix not in (".mp4", ".gif"):
        stem = name.replace(":", "-") if name.startswith("toyworld") else Path(name).stem
        movie = movie / f"{stem}.mp4"
    movie.parent.mkdir(parents=True, exist_ok=True)
    write_movie(movie, panel(result), clip.fps)
    sheet(result).save(movie.with_suffix(".png"))
    frames, seconds = new * args.num_samples, result["seconds"]
    tokens = frames * model.config.tokens_per_frame
    about = GenerationResult(
        command=command,
        model=args.model,
        video=name,
        source=clip.source,
        num_prompt_frames=prompt,
        num_frames=new,
        sampling={"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p},
        drop_frames=frames_to_drop(model.config, args.drop_frames),
        recompute=args.recompute,
        seeds={"draws": args.seed},
        tokens_per_second=tokens / seconds,
        seconds_per_frame=seconds / frames,
        versions=versions(),
    )
    write_json(movie.with_suffix(".json"), about.to_json())
    print(
        f"{name}: {prompt} prompt frames, {args.num_samples} x {new} new ones in {seconds:.1f} s: "
        f"{about.tokens_per_second:,.0f} tok/s, {about.seconds_per_frame:.3f} s/frame"
    )
    print(f"wrote {movie} and {movie.with_suffix('.png')}")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
