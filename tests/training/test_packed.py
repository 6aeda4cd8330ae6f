"""Packing a set and training on it, with kills and resumes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparing import figures
from faults import Lab, packing
from PIL import Image
from safetensors.torch import load_file

from cnnlab import train
from cnnlab.data import SourceOptions
from cnnlab.data.pack_writer import pack
from cnnlab.defaults import choose_recipe

SETTINGS = ["epochs=2", "limit=320", "save_steps=2", "shift=2", "mixup=0.3"]
OPTIONS = SourceOptions(data_dir=Path("data"))


def test_killed_packing_is_continued(forks: Any, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(path)
    source = f"folder:{tmp_path}/images"
    pack(source, "whole", OPTIONS, shard_bytes=4000)
    for turn in [1, *random.Random(0).sample(range(2, 24), 6)]:
        shutil.rmtree("store.partial", ignore_errors=True)
        shutil.rmtree("store", ignore_errors=True)
        process = forks.Process(target=packing, args=(source, str(Path.cwd() / "store"), turn, 4000))
        process.start()
        process.join(60)
        assert process.exitcode == -9, turn
        assert not Path("store").exists()
        journal = Path("store.partial/journal.jsonl")
        with journal.open("ab") as file:  # a line that only partly reached the disk
            file.write(b'{"file": "images')
        pack(source, "store", OPTIONS, shard_bytes=4000)
        assert sorted(path.name for path in Path("store").iterdir()) == sorted(p.name for p in Path("whole").iterdir())
        for path in Path("store").iterdir():
            assert path.read_bytes() == (Path("whole") / path.name).read_bytes(), (turn, path)


class PackedLab(Lab):
    def train(self, name: str) -> list[str]:
        return [*super().train(name), "--recipe", "digits", "--data", f"pack:{self.folder.parent}/digits"]


def test_training_on_a_packed_set_matches_a_resident_set_even_after_kills(forks: Any, tmp_path: Path) -> None:
    pack("digits", tmp_path / "digits", OPTIONS)
    usual = Lab(forks, tmp_path / "resident", SETTINGS, random.Random(0))
    resident = usual.uninterrupted()
    lab = PackedLab(forks, tmp_path / "packed", SETTINGS, random.Random(1), usual.seconds, usual.turns)
    path, kills = lab.killed("killed", 2)
    assert len(kills) == 2
    for name in ("last.safetensors", "best.safetensors"):
        one, other = load_file(path / name), load_file(resident / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert figures(path)[:-1] == figures(resident)[:-1]  # the last row names the source


def test_the_imagenet_recipe_trains_on_a_packed_set_of_1000_classes(tmp_path: Path) -> None:
    for i in range(2):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (30, 25 + i, 3), np.uint8)).save(f"{i}.jpg")
    for k in range(1000):
        folder = tmp_path / "images" / f"n{k:04}"
        folder.mkdir(parents=True)
        for i in range(2):
            (folder / f"{i}.jpg").hardlink_to(f"{i}.jpg")
    pack(f"folder:{tmp_path}/images", tmp_path / "store", OPTIONS)
    recipe = choose_recipe(recipe="imagenet/resnet50", data=f"pack:{tmp_path}/store")
    small = recipe.changed(
        model="resnet18-small", image_size=32, batch_size=16, epochs=1, limit=32, val_fraction=0.5, precision="float32",
        memory_format="channels_last", compile="off",
    )  # fmt: skip
    result = train(small, progress="none", threads=1)
    assert len(result.run.info["data"]["classes"]) == 1000
    assert result.history[0]["images"] == 32
