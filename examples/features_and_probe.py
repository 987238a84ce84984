# %% [markdown]
# # Features and a probe of your own photos
#
# A frozen model turns every photo into one vector per layer; a linear head on each layer then shows what the layer
# knows about your labels. `DATA` is a folder with one folder of photos for each class. Without it, small pictures of
# the embedded world are drawn, labelled by their texture. It takes half a minute.

# %%
import os
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from evaluation import extract_features, fit_probe, load_backbone
from evaluation.demo import NANO
from tokenization import Sampling, ToyWorld, open_source

DATA = os.environ.get("DATA")
MODEL = os.environ.get("MODEL", str(NANO))  # a Toto, or a Hub id such as facebook/dinov2-small
OUT = Path(os.environ.get("OUT", "out/features_and_probe"))
MAX_PHOTOS = int(os.environ.get("MAX_PHOTOS", 600))
OUT.mkdir(parents=True, exist_ok=True)

if DATA is None:
    world = ToyWorld("train", resolution=64, num_frames=1)
    for number in range(MAX_PHOTOS):
        item = world.clip(number)
        folder = OUT / "photos" / world.label_names["texture"][item["texture"]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(item["video"][0]).save(folder / f"{number:04d}.png")
    DATA = str(OUT / "photos")

# %% [markdown]
# ## Features
# `open_source` reads folders, parquet and webdataset files and Hub ids alike; of a large folder it takes photos from
# all over (`shuffle_seed`).

# %%
backbone = load_backbone(MODEL)
sampling = Sampling(resolution=backbone.resolution)
photos = list(open_source(DATA, sampling=sampling, limit=MAX_PHOTOS, kind="image", shuffle_seed=0))
labels = np.array([photo.labels["label"] for photo in photos])
features = extract_features(backbone, photos)
print(f"{len(photos)} photos of {len(set(labels))} classes")
print(f"features (layers, photos, D): {tuple(features.pooled.shape)}")

# %% [markdown]
# ## A probe
# 60 % of the photos train the heads, 20 % choose their settings and the layer, and 20 % test. If several photos show
# the same scene, keep them on one side: `toto probe --group_by` does that.

# %%
order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(0))
train, val, test = order.tensor_split([len(order) * 6 // 10, len(order) * 8 // 10])
fitted_on = (features.take(train), labels[train], features.take(val), labels[val])
probe = fit_probe(*fitted_on, features.take(test), labels[test])
commonest = np.bincount(labels[train]).argmax()
print(f"chosen on validation: layer {probe.layer}, {probe.setting}")
print(f"right on {probe.accuracy:.1%} of {len(test)} test photos", end=" ")
print(f"(always the most common class: {np.mean(labels[test] == commonest):.1%})")

# %%
figure = Figure(figsize=(6, 4), layout="constrained")
axes = figure.subplots()
axes.plot(list(probe.val_accuracies), list(probe.val_accuracies.values()), marker="o")
axes.set(xlabel="layer (0: the embeddings)", ylabel="accuracy on validation", title="Linear probes of every layer")
figure.savefig(OUT / "layers.png")
print(f"wrote {OUT / 'layers.png'}")
Image.open(OUT / "layers.png")
