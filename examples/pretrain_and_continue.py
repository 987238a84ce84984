# %% [markdown]
# # Pre-train on your own videos and continue a clip
#
# Videos become tokens, a small Toto learns to predict the next one, and the trained model continues a clip. `DATA` is a
# folder of videos (or a file, or a Hub id); without it the embedded world is drawn. The default takes about six
# minutes of one CPU core, which is a beginning: raise `CLIPS` and `STEPS`.

# %%
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation import continue_clip
from tokenization import Sampling, TokenizeArgs, open_source, tokenize
from training import load_run, pretrain_model

DATA = os.environ.get("DATA", "toyworld")
TEST_SPLIT = "test" if DATA == "toyworld" else os.environ.get("TEST_SPLIT", "train")
OUT = Path(os.environ.get("OUT", "out/pretrain_and_continue"))
CLIPS = int(os.environ.get("CLIPS", 500))
STEPS = int(os.environ.get("STEPS", 300))
TOKENS_PER_STEP = int(os.environ.get("TOKENS_PER_STEP", 4096))

# %% [markdown]
# ## Videos to tokens
# The small tokenizer that ships makes 8 x 8 tokens of each frame of 64 x 64 pixels; a clip has 16 frames.

# %%
if not (OUT / "shards").exists():
    tokenize(TokenizeArgs(dataset=DATA, output=str(OUT / "shards"), max_clips=CLIPS))

# %% [markdown]
# ## Tokens to a model
# The same run as `toto pretrain --recipe tiny_cpu --shards ...`: every flag of the command is a keyword. A run that was
# interrupted continues exactly where it stopped, with `pretrain_model(resume=run)`.

# %%
run = OUT / "run"
if (run / "recipe.yaml").exists():
    pretrain_model(resume=run)
else:
    flags = {"max_steps": STEPS, "warmup_steps": min(40, STEPS), "tokens_per_step": TOKENS_PER_STEP}
    pretrain_model(OUT / "shards", recipe="tiny_cpu", output_dir=run, **flags)
rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
losses = [row["val_loss"] for row in rows if "val_loss" in row]
print(f"validation loss {losses[-1]:.3f} nats per token; guessing among 512 codes: {np.log(512):.3f}")

# %% [markdown]
# ## Continue a clip
# The model is given half of its frames and generates the others. Upper row: the clip; lower row: the prompt as the
# tokenizer reconstructs it, then the generated frames.

# %%
model, processor = load_run(run)
sampling = Sampling(num_frames=model.config.num_frames, resolution=processor.resolution)
clip = next(iter(open_source(DATA, TEST_SPLIT, sampling, limit=1))).frames
frames = continue_clip((model, processor), clip, temperature=0.9, seed=0)
print(f"{frames.shape[0]} frames of {frames.shape[1]} x {frames.shape[2]} pixels, the second half generated")

# %%
sheet = np.concatenate([np.concatenate(row, axis=1) for row in (clip, frames)])  # (2 R, T R, 3)
Image.fromarray(sheet).save(OUT / "continued.png")
print(f"wrote {OUT / 'continued.png'}")
Image.open(OUT / "continued.png")
