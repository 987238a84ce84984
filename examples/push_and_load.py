# %% [markdown]
# # Push a model to the Hub and load it elsewhere
#
# One repository holds the model, its processor and visual tokenizer, their code and a card. It then loads with
# transformers alone. `MODEL` is a run folder or a model folder; `REPO` is the repository, such as `you/my-toto` (log in
# first: `hf auth login`). Without `REPO` nothing is sent: the same files are loaded from the folder.

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.demo import NANO
from tokenization import ToyWorld
from training import load_run, push_folder

MODEL = os.environ.get("MODEL", str(NANO))
REPO = os.environ.get("REPO")
OUT = Path(os.environ.get("OUT", "out/push_and_load")).resolve()

# %% [markdown]
# ## The folder
# `save_pretrained` of both writes into one folder; the code that they need is copied next to the weights.

# %%
model, processor = load_run(MODEL)
model.save_pretrained(OUT / "model")
processor.save_pretrained(OUT / "model")
print("\n".join(sorted(str(file.relative_to(OUT)) for file in (OUT / "model").rglob("*") if file.is_file())))

# %% [markdown]
# ## Push
# `push_folder` writes a model card if the folder has none, and sends everything in one commit.

# %%
if REPO is None:
    repository = str(OUT / "model")
    print("REPO is not set, so nothing was pushed")
else:
    print(f"pushed {push_folder(OUT / 'model', REPO, private=True)}")
    repository = REPO

# %% [markdown]
# ## Load elsewhere
# Another process, in another folder, which imports nothing of this project: `trust_remote_code=True` lets transformers
# run the code in the repository. It continues a clip by two frames.

# %%
ELSEWHERE = """
import sys
import numpy as np
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor

repository, clip, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
prompt = processor(videos=np.load(clip), add_end_token=False)["input_ids"]
frames = processor.decode(model.generate_frames(prompt, num_frames=2, temperature=0.9))[0]
Image.fromarray(np.concatenate(frames, axis=1)).save(output)
assert not {"modeling_toto", "tokenization"} & set(sys.modules), "the project was imported"
print(f"{type(model).__module__}: {type(model).__name__} of {model.num_parameters():,} parameters")
"""
np.save(OUT / "clip.npy", ToyWorld("test", resolution=processor.resolution, num_frames=2).clip(3)["video"])
with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-c", ELSEWHERE, repository, str(OUT / "clip.npy"), str(OUT / "continued.png")]
    print(subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
print(f"wrote {OUT / 'continued.png'}: two frames of a clip, and two generated ones")
Image.open(OUT / "continued.png")
