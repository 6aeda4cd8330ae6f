"""Write the result tables of the READMEs and docs from benchmarks/results/: python benchmarks/tables.py

No figure is typed by hand; a test compares the pages with the output of this script. Only results that git tracks
count, so `git add` a new one first. In a copy without git, all files of benchmarks/results count.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from cnnlab.chapter.experiments import CLASSICAL, EXPERIMENTS, markdown
from cnnlab.machine.race import RACES, Record
from cnnlab.training.evaluate import VIEWS

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- results: written by `python benchmarks/tables.py`, from benchmarks/results/ -->"
END = "<!-- end of results -->"

WORDS = {
    "README.md": {
        "test": "test",
        "validation": "validation",
        "seeds": "The named recipes, {n} seeds each, last epoch, mean ± std. The manual's recipes evaluate on the test set after each epoch, "
        "as the manual does; ours use only a validation split. {hardware}.",
        "columns": "| recipe | | loss | train acc | acc, split | images/s, wall-clock including data | compute only | total, s |",
        "ours": "cnnlab",
        "printed": "printed",
        "peer": "Compared with {peer}: same network, batch size, image size and data; {n} alternating runs of each. Training images/s, wall-clock including "
        "data loading, medians (range of the ratio). Method and more figures: [speed.md](docs/speed.md). {hardware}.",
        "peer_columns": "| network | pixels | d2l, images/s | cnnlab, float32 | | cnnlab, `precision=auto` | |",
        "times": "**{median:.1f}x** ({min:.1f} to {max:.1f})",
        "speed": "Time to accuracy on Fashion-MNIST. Settings were chosen on a validation split (exceptions: [speed.md](docs/speed.md)); the test "
        "set was evaluated once per seed, at the end. Training includes whitening and that evaluation. For p, the rules and other races, see [leaderboard.md](docs/leaderboard.md).",
        "race_columns": "| race | accuracy | p | training, s | whole process, s | work, TFLOP | hardware | date |",
        "gpu": "On one GPU, `{recipe}` with {epochs} epochs reaches {acc} on {images:,} held-out images of CIFAR-10 (six views each, {n} seeds) in **{seconds:.2f} s** "
        "of whitening, training and evaluation, without compilation. The chapter's networks on that GPU: [speed.md](docs/speed.md). {hardware}.",
        "kaggle": "The competition, from Kaggle's archives to a valid `submission.csv`; each command was run once. The test labels are secret, so "
        "accuracy is measured on held-out labelled images, with the predictions of all networks averaged. {hardware}.",
        "kaggle_columns": "| command | networks | total, min | held-out images | val acc, 1 view | 6 views | submission |",
        "prepare": "Reading an archive of {images:,} test images takes {ours:.0f} s ({rate:,.0f} images/s; peak memory {memory:,.0f} MiB, memory-mapped files not counted). "
        "That is {ratio:.1f} times as fast as `7z x` followed by a loop with Pillow ({theirs:.0f} s; median of {n} alternating pairs, {min:.1f} to {max:.1f}). {hardware}.",
    },
    "README.zh.md": {
        "test": "测试集",
        "validation": "验证集",
        "seeds": "各训练配方，每个 {n} 个种子，取最后一个迭代周期，均值 ± 标准差。教材的配方每个迭代周期都在测试集上评估（与教材一致）；我们的配方只用验证集。{hardware}。",
        "columns": "| 配方 | | 损失 | 训练精度 | 精度（数据划分） | 图像/秒（含数据读取的实际时间） | 图像/秒（只算计算） | 总秒数 |",
        "ours": "cnnlab",
        "printed": "教材",
        "peer": "与 {peer} 比较：同样的网络、批量大小、图像尺寸和数据，双方交替各运行 {n} 次；训练的图像/秒（含数据读取的实际时间），中位数（比值的范围）。"
        "比较的方法和其他数字见 [speed.md](docs/speed.md)。{hardware}。",
        "peer_columns": "| 网络 | 像素 | d2l，图像/秒 | cnnlab，float32 | | cnnlab，`precision=auto` | |",
        "times": "**{median:.1f} 倍**（{min:.1f} 到 {max:.1f}）",
        "speed": "在 Fashion-MNIST 上达到某个精度所需的时间。设置只凭验证集选定（例外见 [speed.md](docs/speed.md)），测试集每个种子只在最后评估一次。训练时间包含白化和这次评估；p：真实均值低于目标的 p 值。"
        "规则和其他项目见[排行榜](docs/leaderboard.zh.md)。",
        "race_columns": "| 项目 | 精度 | p | 训练，秒 | 整个进程，秒 | 计算量，TFLOP | 硬件 | 日期 |",
        "gpu": "单个 GPU：CIFAR-10 上，在预留的 {images:,} 张图像上（每张六个视图）精度 {acc}，{n} 个种子，白化、训练和评估共 **{seconds:.2f} 秒**（`{recipe}`，{epochs} 个迭代周期；编译时间不计入）。"
        "该 GPU 上教材各网络的数字见 [speed.md](docs/speed.md)。{hardware}。",
        "kaggle": "竞赛：从 Kaggle 的压缩包到有效的 `submission.csv`。精度是所有网络取平均后在预留的有标签图像上的精度，命令各运行一次；测试标签不公开。{hardware}。",
        "kaggle_columns": "| 命令 | 网络数 | 总分钟数 | 预留图像 | 验证精度（1 个视图） | 6 个视图 | 提交文件 |",
        "prepare": "读取 {images:,} 张测试图像的压缩包：{ours:.0f} 秒（每秒 {rate:,.0f} 张，除映射文件外内存至多 {memory:,.0f} MiB），"
        "是 `7z x` 加 Pillow 循环的 {ratio:.1f} 倍速（后者 {theirs:.0f} 秒；交替 {n} 对的中位数，{min:.1f} 到 {max:.1f}）。{hardware}。",
    },
    "docs/own-images.md": {
        "head": "Balanced accuracy on the test part; in brackets, the CPU time of one training in minutes. Mean ± std over n seeds. {hardware}.",
        "images": "training images",
        "cell": "{accuracy} ({minutes:.1f} min, n = {n})",
        "sign": "sign-language digits, {train:,}",
        "cifar": "CIFAR-10, {train:,}",
        "fashion": "Fashion-MNIST, {train:,}",
        "imbalanced": ", 1:20",
        "few": ", equal",
    },
    "docs/own-images.zh.md": {
        "head": "测试部分的平衡精度，括号里是一次训练的 CPU 时间；n 个种子的均值 ± 标准差。{hardware}。",
        "images": "训练图像",
        "cell": "{accuracy}（{minutes:.1f} 分钟，n = {n}）",
        "sign": "手语数字，{train:,} 张",
        "cifar": "CIFAR-10，{train:,} 张",
        "fashion": "Fashion-MNIST，{train:,} 张",
        "imbalanced": "，1:20",
        "few": "，各类同样多",
    },
}


@cache
def published(root: Path = ROOT, files: str = "results/*.json") -> list[Path]:
    """Return the results in benchmarks/ that git tracks. In a copy that git does not track, return all."""
    tracked: list[Path] = []
    if shutil.which("git"):
        command = ["git", "-C", str(root), "ls-files", "-z", "--", f"benchmarks/{files}"]
        done = subprocess.run(command, capture_output=True, text=True)
        tracked = [root / name for name in done.stdout.split("\0") if name]
    return sorted(path for path in tracked or (root / "benchmarks").glob(files) if path.exists())


def labelled(pattern: str) -> list[Path]:
    """Return the published results whose file names match `pattern`."""
    return [path for path in published() if path.match(pattern)]


def newest(name: str) -> dict[str, Any]:
    """Return the newest result of a benchmark, with its file's name."""
    return by_machine(name)[0]


def newest_of_each(name: str) -> list[dict[str, Any]]:
    """Return the results of a benchmark, newest first, each with only the recipes that no newer one has; omit empty ones."""
    seen: set[str] = set()
    results = []
    for result in every(f"{name}*"):  # whatever its label
        recipes = {k: r for k, r in result["recipes"].items() if k not in seen}
        seen |= recipes.keys()
        results += [{**result, "recipes": recipes}] if recipes else []
    return results


def every(name: str) -> list[dict[str, Any]]:
    """Return all results of a benchmark, each with its file's name, newest first."""
    found = [{**json.loads(path.read_text()), "file": path.name} for path in labelled(f"{name}_*.json")]
    return sorted(found, key=lambda result: result["environment"]["date"], reverse=True)


def by_machine(name: str) -> list[dict[str, Any]]:
    """Return the newest result of a benchmark on each machine, with its file's name, newest first."""
    results = every(name)
    newest = {tuple(result["environment"][k] for k in MACHINE): result for result in reversed(results)}
    return [result for result in results if result in newest.values()]


MACHINE = ("device", "device_name", "cpu_capability", "cores")


def hardware(result: dict[str, Any], up: str = "") -> str:
    env = result["environment"]
    link = f"[{env['date'][:10]}]({up}benchmarks/results/{result['file']})"
    vectors = f" ({CAPABILITY.get(env['cpu_capability'], env['cpu_capability'])})" if env["device"] == "cpu" else ""
    if env["device"].startswith("cuda"):
        return f"One {env['device_name']}, torch {env['versions']['torch']}, {link}"
    return (
        f"{env['device_name']}{vectors}, {env['threads']} core{'s' * (env['threads'] != 1)}, "
        f"torch {env['versions']['torch']}, {link}"
    )


CAPABILITY = {"AVX512": "AVX-512"}


def chinese(text: str) -> str:
    """Translate the text of `hardware`."""
    return re.sub(r"\b(\d+) cores?\b", r"\1 核", text).replace("One NVIDIA", "一块 NVIDIA")


def spread(value: dict[str, Any], form: str = ".3f") -> str:
    """Return the mean and the standard deviation; for a single seed, only the mean."""
    return f"{value['mean']:{form}}" + ("" if value["std"] is None else f" ± {value['std']:{form}}")


def table(words: dict[str, str]) -> str:
    seeds = newest("recipe-seeds")
    lines = [words["seeds"].format(n=seeds["n"], hardware=hardware(seeds)), "", words["columns"], "|---" * 8 + "|"]
    for name, r in seeds["recipes"].items():
        key, printed = ("test_acc" if r["eval_split"] == "test" else "val_acc"), r["printed_by_the_manual"]
        total = mean(s["total_seconds"] for s in r["per_seed"])
        lines.append(
            f"| `{name}` | {words['ours']} | {spread(r['loss'])} | {spread(r['train_acc'])} | {spread(r[key])}, {words[r['eval_split']]} | "
            f"{r['images_per_second']['mean']:,.0f} | {r['examples_per_second']['mean']:,.0f} | {total:.0f} |"
        )
        if printed:
            lines.append(
                f"| | {words['printed']} | {printed['loss']:.3f} | {printed['train_acc']:.3f} | {printed['test_acc']:.3f}, {words['test']} | | | |"
            )
    lines += ["", words["speed"], "", leaderboard(words, [race for race in RACES if race.startswith("fashion")], "")]
    for peer in by_machine("vs-d2l"):
        lines += ["", words["peer"].format(peer=peer["peer"].replace("==", " "), n=pair_counts(peer), hardware=hardware(peer) + measured_before(peer)),
                  "", words["peer_columns"], "|---" * 7 + "|"]  # fmt: skip
        for name, r in peer["networks"].items():
            speed = r["images_per_second"]
            lines.append(
                f"| {name} | {r['image_size'] or 28} | {rate(speed['d2l'])} | {rate(speed['cnnlab'])} | {words['times'].format(**r['speed_ratio'])} | "
                f"{rate(speed['cnnlab-auto'])} | {words['times'].format(**r['speed_ratio_auto'])} |"
            )
    for result, name, race in gpu_races():
        if name == "speed/cifar-94":
            lines += ["", words["gpu"].format(
                recipe=name, epochs=race["recipe"]["epochs"], acc=spread(race["final_acc"], ".4f"), n=race["final_acc"]["n"],
                images=round(race["recipe"]["val_fraction"] * 50_000), seconds=race["race_seconds"]["mean"], hardware=hardware(result),
            )]  # fmt: skip
    return "\n".join([*lines, "", *competition(words)])


def measured_before(peer: dict[str, Any]) -> str:
    """Return, in brackets, the networks that were measured on another day or with another torch than the rest."""
    here = (peer["environment"]["date"][:10], peer["environment"]["versions"]["torch"])
    groups: dict[tuple[str, str], list[str]] = {}
    for name, r in peer["networks"].items():
        if "measured" in r:
            groups.setdefault((r["measured"]["date"][:10], r["measured"]["torch"]), []).append(name)
    text = [
        f"{', '.join(names)}: torch {torch}, {date}" for (date, torch), names in groups.items() if (date, torch) != here
    ]
    return f" ({'; '.join(text)})" if text else ""


def pair_counts(peer: dict[str, Any]) -> str:
    """Return how often each network was measured: a number, or a range."""
    counts = sorted({len(r["pairs"]) for r in peer["networks"].values()})
    return "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 1000 else f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}"


def classifying() -> list[str]:
    """Return, for docs/speed.md, the images/s of `cnnlab predict` and of other loops, from benchmarks/predict.py."""
    if not labelled("predict_*.json"):
        return []
    found = newest("predict")
    many = found["many"]
    lines = ["", f"Classifying a folder of JPEG photographs of 100 x 100 pixels: images/s (peak memory in MiB, workers included), medians of {found['n']} alternating rounds. "
             f"{hardware(found, '../')}.", "", "| network | pixels | `cnnlab predict --out` | a loop with Pillow | torchvision's ImageFolder, DataLoader |", "|---|---|---|---|---|"]  # fmt: skip
    for name, r in found["networks"].items():
        sides = " | ".join(
            f"{r[side]['images_per_second']['median']:,.0f} ({r[side]['peak_pss_mib']:,.0f})"
            for side in ("cnnlab", "pillow", "torchvision")
        )
        lines.append(f"| {name} | {r['image_size']} | {sides} |")
    rate, memory = many["images"] / many["seconds"], many["peak_pss_mib"]
    return [
        *lines,
        "",
        f"`cnnlab predict --out` on {many['images']:,} such photographs with lenet-bn: {rate:,.0f} images/s, at most {memory:,.0f} MiB.",
    ]


def speed() -> str:
    """Return, for docs/speed.md, everything that was measured about speed."""
    fashion = newest_of_each("fashion-speed")
    lines: list[str] = []
    with_d2l = next((found for found in every("fashion-speed*") if "beside_d2l" in found), None)
    if with_d2l:
        beside = with_d2l["beside_d2l"]
        pair = beside["pairs"]
        theirs, ours = (
            median(p[side][key] for p in pair) for side, key in (("d2l", "seconds"), ("cnnlab", "clock_seconds"))
        )
        accuracy = mean(p["cnnlab"]["final_acc"] for p in pair)
        lines += ["", f"Compared with d2l's own BN-LeNet, 10 epochs ({theirs:.1f} s including data and evaluation), {len(pair)} alternating pairs: the whole run of `speed/fashion-90` takes "
                  f"{ours:.1f} s, **1/{beside['ratio']['median']:.1f}** of that (1/{beside['ratio']['min']:.1f} to 1/{beside['ratio']['max']:.1f}), "
                  f"and reaches {accuracy:.4f} on the test set, mean of {len(pair)} seeds. {hardware(with_d2l, '../')}."]  # fmt: skip
    for found in fashion:
        rows = {name: r for name, r in found["recipes"].items() if "printed_test_acc" in r}
        if rows:
            lines += ["", "The chapter's networks at native resolution, beside the printed accuracy; multiply-adds as a fraction of those of the manual's recipe. "
                      f"{found['n']} seeds each, {hardware(found, '../')}.", "",
                      "| recipe | network | epochs | printed test acc | ours | views | multiply-adds | training, s |", "|---" * 8 + "|"]  # fmt: skip
        for name, r in rows.items():
            lines.append(
                f"| `{name}` | {r['recipe']['model']} | {r['recipe']['epochs']} | {r['printed_test_acc']:.3f} | {spread(r['final_acc'], '.4f')} | {r['looks']} | "
                f"1/{r['manual_multiply_adds'] / r['multiply_adds']:.1f} | {spread(r['train_seconds'], '.1f')} |"
            )
    for cifar in newest_of_each("cifar-speed"):
        lines += ["", f"CIFAR-10: trained on the labelled images except 5,000, on which accuracy is measured; {cifar['n']} seeds each. {hardware(cifar, '../')}.", "",
                  "| recipe | network | epochs | val acc, 1 view | 6 views | training, s | whole run, s |", "|---" * 7 + "|"]  # fmt: skip
        for name, r in cifar["recipes"].items():
            figures = [spread(r[key], ".4f") for key in ("val_acc", "final_acc")]
            figures += [spread(r[key], ".0f") for key in ("train_seconds", "clock_seconds")]
            lines.append(f"| `{name}` | {r['recipe']['model']} | {r['recipe']['epochs']} | {' | '.join(figures)} |")
    lines += on_a_gpu()
    for peer in by_machine("vs-d2l"):
        lines += beside_d2l(peer)
    return "\n".join([*lines, *drop_in(), *reference(), *classifying()][1:])


def part(result: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the result of one part of gpu_suite.py; empty if it was not requested, failed or had no time."""
    found = result["parts"].get(name, {}).get("found")
    return found if isinstance(found, dict) else {}


def on_a_gpu() -> list[str]:
    """Return, for docs/speed.md, what gpu_suite.py measured: the newest of each row."""
    results, lines = every("gpu-suite*"), []
    chapter: dict[tuple[str, str, str, int], tuple[dict[str, Any], float | None, str]] = {}
    for result in reversed(results):
        for found in (part(result, "chapter"), part(result, "best")):
            printed = found.get("printed_examples_per_second", {})
            for answer in found.get("by_network", found).values():
                for row in answer["rows"] if isinstance(answer, dict) and "rows" in answer else []:
                    key = (row["model"], row["precision"], row.get("compile", ""), row["batch_size"])
                    if "failed" not in row:
                        chapter[key] = row, printed.get(row["model"]), hardware(result, "../")
    if chapter:
        where = "; ".join(dict.fromkeys(text for _, _, text in chapter.values()))
        lines += ["", "Training speed on one GPU of the chapter's networks at the printed batch and image size, and of two networks at large batches: images/s, wall-clock including data, "
                  f"compared with the printed examples/s, which exclude data loading. {where}.", "",
                  "| network | batch | pixels | computed in | images/s | compute only | times the printed speed | share of peak |", "|---" * 8 + "|"]  # fmt: skip
    names = [key[0] for key in chapter]
    for key in sorted(chapter, key=lambda k: (names.index(k[0]), k[3], k[2] != "record", k[1] != "float32")):
        row, printed_speed, _ = chapter[key]
        way = {"record": "CUDA graph", "default": "compiled, CUDA graph"}.get(row["compile"], row["compile"])
        times = f"{row['images_per_second'] / printed_speed:.1f}" if printed_speed else ""
        lines.append(
            f"| {row['model']} | {row['batch_size']} | {row['image_size']} | {row['precision']}, {row['memory_format']}, {way} | {rate(row['images_per_second'])} | "
            f"{rate(row['examples_per_second'])} | {times} | {row['fraction_of_peak']:.1%} |"
        )
    for result, name, race in gpu_races():
        r, run = race["recipe"], race["per_seed"][0]
        split = {"validation": "held-out images", "test": "test images"}[run["final_split"]]
        lines += ["", f"`{name}` with {r['epochs']} epochs of {run['images']:,} images on one GPU: {spread(race['final_acc'], '.4f')} on the {split}, {VIEWS[run['views']]} views "
                  f"({spread(race['val_acc'], '.4f')} on held-out images, one view), {race['final_acc']['n']} seeds. Whitening, training and the last evaluation take {spread(race['race_seconds'], '.2f')} s, "
                  f"the whole run without drawing curves {spread(race['clock_seconds'], '.2f')} s; a warm-up epoch including compilation takes {race['first_seconds']:.0f} s. {hardware(result, '../')}."]  # fmt: skip
    seen: set[str] = set()
    for result in results:
        for name, r in part(result, "d2l").items():
            if not isinstance(r, dict) or name in seen:
                continue
            seen.add(name)
            ratios = " and ".join(f"{r['speed_ratio' + s]['median']:.1f} times (in {r['plans'][side]['dtype']})" for side, s in (("cnnlab", ""), ("cnnlab-auto", "_auto")))  # fmt: skip
            pairs = f"{len(r['pairs'])} pair{'s' * (len(r['pairs']) > 1)}"
            lines += ["", f"d2l's own code on the same GPU, {name}, {pairs}: {rate(r['images_per_second']['d2l'])} images/s; ours is {ratios} as fast. {hardware(result, '../')}."]  # fmt: skip
    return lines


def gpu_races() -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    """Return the newest completed measurement of each timed recipe: its result, its name and its figures."""
    found: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {}
    for result in every("gpu-suite*"):
        for name, race in (*part(result, "cifar").items(), *part(result, "fashion").items()):
            if isinstance(race, dict):
                found.setdefault(name, (result, name, race))
    return list(found.values())


def beside_d2l(peer: dict[str, Any]) -> list[str]:
    """Return, for docs/speed.md, the comparison of every network with d2l's on one machine."""
    peaks = [r["operations_per_second_at_most"] for r in peer["networks"].values()]  # rows may be of different machines
    top = ", ".join(
        f"{kind} {' or '.join(dict.fromkeys(f'{peak[kind] / 1e9:,.0f}' for peak in peaks))} GFLOP/s"
        for kind in peaks[0]
    )
    lines = ["", f"Compared with {peer['peer'].replace('==', ' ')}, {pair_counts(peer)} alternating pairs of runs for each network, medians; peak of a matrix product: {top}. {hardware(peer, '../')}{measured_before(peer)}.", "",
              "| network | batch | pixels | side | computed in | images/s | times d2l's speed: training | with evaluation and saving | whole process | share of peak | peak memory |",
              "|---" * 11 + "|"]  # fmt: skip
    for name, r in peer["networks"].items():
        for side, suffix in (("d2l", None), ("cnnlab", ""), ("cnnlab-auto", "_auto")):
            plan = r["plans"].get(side, {"dtype": "float32", "memory_format": "contiguous"})
            ratio = ["", "", ""] if suffix is None else [
                f"{r['speed_ratio' + suffix]['median']:.2f} ({r['speed_ratio' + suffix]['min']:.2f} to {r['speed_ratio' + suffix]['max']:.2f})",
                f"{r['whole_ratio' + suffix]['median']:.2f}", f"{r[f'process_ratio{suffix}_median']:.2f}"]  # fmt: skip
            lines.append(
                f"| {name} | {r['batch_size']} | {r['image_size'] or 28} | {side} | {plan['dtype']}, {plan['memory_format']} | {rate(r['images_per_second'][side])} | "
                f"{' | '.join(ratio)} | {r['share_of_peak'][side]:.0%} | {r['peak_pss_mib'][side]:,.0f} MiB |"
            )
    return lines


def drop_in() -> list[str]:
    """Return, for docs/speed.md, what one changed import line gains; nothing until it has been measured."""
    if not labelled("drop-in_*.json"):
        return []
    found = newest("drop-in")
    lines = ["", f"With one import line changed to `from cnnlab import d2l`: a listing's own network, in its own memory format and precision, trained by `train_ch6` on the images of "
             f"`load_data_fashion_mnist`, compared with {found['peer'].replace('==', ' ')}; {found['n']} alternating pairs, medians (range). {hardware(found, '../')}.", "",
             "| network | images | epochs | times d2l's speed: training including data | whole call, with evaluation and plots |", "|---" * 5 + "|"]  # fmt: skip
    for name, r in found["networks"].items():
        both = (
            f"{x['median']:.2f} ({x['min']:.2f} to {x['max']:.2f})"
            for x in (r["ratio"]["train_seconds"], r["ratio"]["seconds"])
        )
        lines.append(f"| {name} | {r['images']:,} | {r['epochs']} | {' | '.join(both)} |")
    return lines


def reference() -> list[str]:
    """Return, for docs/speed.md, the comparison with usual training loops; nothing until it has been measured."""
    if not labelled("vs-reference_*.json"):
        return []
    found = newest("vs-reference")
    lines = ["", "Compared with other training loops (described in `benchmarks/vs_reference.py`): same networks, crops, flips and updates; "
             f"{found['n']} alternating rounds, medians of images/s including data loading (range of the ratio). torchvision-tuned computes in bfloat16, like ours with `precision=auto`; the others in float32. {hardware(found, '../')}.", "",
             "| network | pixels | images | compared with | its images/s | ours, float32 | times its speed | ours, `precision=auto` | times its speed |", "|---" * 9 + "|"]  # fmt: skip
    for name, r in found["networks"].items():
        for peer, a in r["against"].items():
            ours = (
                f"{rate(a['images_per_second'][side])} | {x['median']:.2f} ({x['min']:.2f} to {x['max']:.2f})"
                for side, x in (("cnnlab", a["speed_ratio"]), ("cnnlab-auto", a["speed_ratio_auto"]))
            )
            lines.append(
                f"| {name} | {r['size']} | {r['images']:,} | {peer} | {rate(a['images_per_second'][peer])} | {' | '.join(ours)} |"
            )
    return lines


def saving() -> str:
    """Return, for docs/reliability.md, the cost of a save inside an epoch."""
    found = newest("saving")
    lines = [f"Batches of {next(iter(found['networks'].values()))['batch_size']} images, with a save every few steps; medians. File system: {found['file_system']}. {hardware(found, '../')}.", "",
             "| network | pixels | saves | checkpoint | step | the loop waits (range) | on disk after | total cost | overhead at one save a minute |", "|---" * 9 + "|"]  # fmt: skip
    for name, r in found["networks"].items():
        pause, written, cost = (
            {
                end: f"{1000 * value:,.0f}"
                for end, value in r[f"{what}_seconds"].items()
                if end in ("median", "min", "max")
            }
            for what in ("pause", "written_after", "cost")
        )
        lines.append(
            f"| {name} | {r['image_size']} | {r['saves']} | {r['checkpoint_mib']:,.1f} MiB | {1000 * r['step_seconds']:,.0f} ms | "
            f"{pause['median']} ms ({pause['min']} to {pause['max']}) | {written['median']} ms | {cost['median']} ms | {r['share_once_a_minute']:.2%} |"
        )
    return "\n".join(lines)


def competition(words: dict[str, str]) -> list[str]:
    runs, reading = [newest(f"competition-{label}") for label in ("10min", "1h", "winner")], newest("prepare")
    machines = "; ".join(map(hardware, runs))
    lines = [words["kaggle"].format(hardware=machines), "", words["kaggle_columns"], "|---" * 7 + "|"]
    for run in runs:
        looks = run["validation_accuracy_by_views"]
        file, held_out = run["submission"], sum(map(sum, run["validation_confusion"]))
        lines.append(
            f"| `{run['shown_command']}` | {run['n']} | {run['seconds'] / 60:.1f} | {held_out:,} | {looks['none']:.4f} | "
            f"{looks['shift']:.4f} | [{file}](benchmarks/results/{file}) |"
        )
    ours, theirs = reading["cnnlab"], reading["tutorial"]
    text = words["prepare"].format(
        images=reading["images"], ours=ours["seconds"], rate=ours["images_per_second"], memory=ours["peak_anonymous_mib"],
        theirs=theirs["seconds"], n=reading["n"], hardware=hardware(reading), ratio=reading["ratio"]["median"],
        min=reading["ratio"]["min"], max=reading["ratio"]["max"],
    )  # fmt: skip
    return [*lines, "", text]


def chapter() -> str:
    """Return the chapter's table, from the newest result of each label of benchmarks/reproduce.py."""
    labels = sorted({p.name.partition("_")[0] for p in labelled("reproduce-*.json")})
    results = [newest(label) for label in labels]
    # A later label replaces an earlier one (gpu comes after as-printed), but a limited row never replaces a full one.
    rows: dict[str, dict[str, Any]] = {}
    for row in (row for result in results for row in result["rows"]):
        if row["name"] not in rows or not row["limited"] or rows[row["name"]]["limited"]:
            rows[row["name"]] = row
    order = [*CLASSICAL, *EXPERIMENTS]
    printed = [name for name in EXPERIMENTS if name in rows and not rows[name]["limited"]]
    absent = [EXPERIMENTS[name].title for name in EXPERIMENTS if name not in rows]
    text = f"{len(printed)} of the chapter's {len(EXPERIMENTS)} networks have been run as printed so far."
    text += f" Not yet run: {'; '.join(absent)}." if absent else ""
    lines = [text, "", markdown(sorted(rows.values(), key=lambda row: order.index(row["name"])))]
    for result in results:
        names = "; ".join(row["title"] for row in result["rows"] if rows[row["name"]] is row)
        if not names:
            continue
        note = f" {result['note']}." if result["note"] else ""
        lines.append(f"- {names}: {hardware(result, '../')}.{note}")
    lines.append("")
    for row in rows.values():
        if row["name"] in CLASSICAL:
            chosen = ", ".join(f"{key} {value:g}" for key, value in row["settings"].items())
            lines.append(
                f"- {row['title']}: val acc {row['val_acc']['mean']:.4f}, test acc {row['test_acc']['mean']:.4f} with {chosen}; "
                f"{row['seconds']:.0f} s in total, including the choice of settings"
            )
        for what in ("gamma", "beta"):
            if what in row:
                values = ", ".join(f"{v:.3f}" for v in row[what])
                lines.append(f"- {row['title']}, seed {row['seeds'][0]}, learned {what} of the first layer: {values}")
    return "\n".join(lines)


def own_images(words: dict[str, str]) -> str:
    """Return, for docs/own-images.md, the accuracy of each way on each set, from benchmarks/own_images.py."""
    found = newest("own-images")
    ways = [way for way in found["ways"] if any(way in row for row in found["sets"].values())]
    lines = [
        words["head"].format(hardware=hardware(found, "../")),
        "",
        f"| {words['images']} | {' | '.join(ways)} |",
        "|---" * (len(ways) + 1) + "|",
    ]
    for name, row in found["sets"].items():
        cells = []
        for way in ways:
            if (r := row.get(way)) is None:
                cells.append("")
                continue
            minutes, accuracy = r["cpu_seconds"]["mean"] / 60, spread(r["balanced_accuracy"])
            cells.append(words["cell"].format(accuracy=accuracy, minutes=minutes, n=r["n"]))
        images, _, cut = name.partition("-")
        label = words[images].format(train=found["images"][name]["train"]) + (words[cut] if cut else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


# Bytes/s that a GPU sends while it receives as much. The vendor's figures: 900 GB/s for both directions together inside a
# machine with 8 GPUs (NVLink 4), and a network card of 400 Gbit/s per GPU.
NVLINK, NETWORK = 450e9, 50e9
EPOCHS, IMAGES = 90, 1_281_167  # ImageNet
RESNET50 = {"flops": 24.5e9, "parameters": 25_557_032}  # an image's training step at 224 pixels


def scale() -> str:
    """Return, for docs/scale.md, what two processes gain on a CPU, and what the model predicts for GPUs."""
    found, decoders = newest("scale"), newest("packed-decoders")
    gpu = part(next(r for r in every("gpu-suite-recorded")), "best")["resnet18-manual, batch 2048"]
    row = gpu["rows"][0]
    rates = {key: median(values) for key, values in found["rates"].items()}
    lines = [
        f"`{found['network']}` at {found['size']} pixels, batches of {found['batch']}, one thread per process: images/s, wall-clock "
        f"including data, medians of {found['rounds']} alternating rounds. Scaling efficiency: the speed of two processes as a share of twice that of one. {hardware(found, '../')}.",
        "",
        "| | one process | two processes | scaling efficiency |",
        "|---|---:|---:|---:|",
    ]
    for side, name in (("cnnlab", "cnnlab"), ("plain", "a plain DistributedDataParallel loop")):
        share = found["efficiency"][side]
        lines.append(
            f"| {name} | {rates[f'{side} 1']:.1f} | {rates[f'{side} 2']:.1f} | {share['median']:.0%} "
            f"({share['min']:.0%} to {share['max']:.0%}) |"
        )
    lines += [
        "",
        f"An all-reduce of the {4 * found['parameters'] / 1e6:.0f} MB of gradients between the two takes "
        f"{found['latency_seconds'] * 1e3:.1f} ms + bytes at {found['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s. The model predicts "
        f"{found['predicted_rate_of_two']:.1f} images/s for two processes.",
        "",
        "Prediction for ResNet-50 on ImageNet with a batch of 256 per GPU. It assumes as many operations per second as measured for ResNet-18 at 96 "
        f"pixels on one {gpu['environment']['device_name']} ({row['images_per_second']:,.0f} images/s), the vendor's bandwidths, and the measured "
        f"{decoders['cpu_ms_per_image']['pillow']['median']:.1f} ms of CPU time to decode an image.",
        "",
        f"| GPUs | compute, ms | exchange, ms | images/s | {EPOCHS} epochs, hours | cores for decoding |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    image = RESNET50["flops"] / (row["images_per_second"] * row["flops_per_image"])
    for gpus in (1, 8, 64):
        bandwidth = NVLINK if gpus <= 8 else NETWORK
        compute = 256 * image
        exchange = 2 * (gpus - 1) / gpus * 4 * RESNET50["parameters"] / bandwidth
        speed_ = 256 * gpus / (compute + exchange)
        cores = speed_ * decoders["cpu_ms_per_image"]["pillow"]["median"] / 1e3
        hours = EPOCHS * IMAGES / speed_ / 3600
        lines.append(
            f"| {gpus} | {compute * 1e3:.0f} | {exchange * 1e3:.1f} | {speed_:,.0f} | {hours:.1f} | {cores:.0f} |"
        )
    return "\n".join(lines)


def service() -> str:
    """Return, for docs/serve.md, the comparison with LitServe and a loop, and the memory over ten minutes."""
    found, long = newest("serve"), newest("serve-memory")
    names = {
        "loop": "decode and onnxruntime in a loop, no HTTP",
        "cnnlab": "cnnlab serve",
        "litserve": f"LitServe {found['versions'].get('litserve', '')}",
    }
    lines = [
        f"Medians of {found['n']} alternating rounds of {found['seconds']:g} s; one JPEG per request. CPU: the CPU time of the server and its "
        f"processes per request. onnxruntime {found['versions']['onnxruntime']}, {hardware(found, '../')}.",
        "",
        "| network | side | clients | requests/s | p50, ms | p99, ms | CPU, ms |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for network, figures in found["networks"].items():
        for side, by_clients in figures["sides"].items():
            for clients, row in by_clients.items():
                lines.append(
                    f"| {network} | {names[side]} | {'-' if side == 'loop' else clients} | {row['requests_per_second']['median']:,.0f} | "
                    f"{row['p50_ms']['median']:,.1f} | {row['p99_ms']['median']:,.1f} | {row['server_cpu_ms']['median']:.2f} |"
                )
    lines += [
        "",
        "Effect of batch size and waiting time, 32 clients:",
        "",
        "| network | `--max-batch` | `--max-wait`, ms | requests/s | p50, ms | p99, ms | CPU, ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for network, rows in found["options"].items():
        lines += [
            f"| {network} | {row['max_batch']} | {row['max_wait_ms']:g} | {row['requests_per_second']['median']:,.0f} | "
            f"{row['p50_ms']['median']:,.1f} | {row['p99_ms']['median']:,.1f} | {row['server_cpu_ms']['median']:.2f} |"
            for row in rows
        ]
    memory = long["memory"]
    lines += [
        "",
        f"Memory: eight clients for {memory['minutes']:g} minutes, {memory['requests']:,} requests with images of 16 x 16 to 1,400 x 900 "
        "pixels, one in twenty of them damaged. Resident memory in MiB, median of each minute: "
        f"{', '.join(f'{mib:.0f}' for mib in memory['rss_mib_by_minute'][: int(memory['minutes'])])}; peak {memory['rss_mib_peak']:.0f}. "
        f"{hardware(long, '../')}.",
    ]
    return "\n".join(lines)


def leaderboard(words: dict[str, str], races: Sequence[str] = tuple(RACES), up: str = "../") -> str:
    """Return a row for each record of these races in benchmarks/records/, by race and work."""
    records = []
    for path in published(files="records/*/record.json"):
        found = json.loads(path.read_text())
        if found.pop("reached") and found["race"] in races:
            records.append((races.index(found["race"]), found["work"], path.parent.name, Record(**found)))
    lines = [words["race_columns"], "|---|---|---|---|---|---|---|---|"]
    for _, _, folder, record in sorted(records, key=lambda one: one[:3]):
        link = f"[{record.race}]({up}benchmarks/records/{folder}/record.json)"
        lines.append(record.row().replace(record.race, link, 1))
    return "\n".join(lines)


def export() -> str:
    """Return, for docs/export.md, parity, size and speed of each network's file, from benchmarks/export.py."""
    found, fit = newest("export"), newest("export-fit")
    rows = [row for row in found["networks"] if "refused" not in row]
    images = {part["images"] for row in rows for part in row["parity"]}
    lines = [
        f"Networks trained for a few steps on the handwritten digits, exported to ONNX and compared on all "
        f"{' or '.join(map(str, sorted(images)))} validation images: {len(rows)} networks, "
        f"{sum(part['changed'] for row in rows for part in row['parity'])} predicted classes changed. "
        f"Images/s in batches of {found['batch']}, one thread; PyTorch's are those of `Classifier.predict_batch`. "
        f"The rows come from different machines that were doing other work too, so compare speeds only within a row. {hardware(found, '../')}.",
        "Networks with sigmoids or without batch norm have hardly learned anything after so few steps. They output nearly the same "
        "probabilities for every image, so their small differences prove little.",
        "",
        "| network | input | CPU | largest difference | ties | MB | export and check, s | PyTorch images/s | onnxruntime images/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['network']} | {row['image_size']} | {CAPABILITY.get(row['cpu_capability'], row['cpu_capability'])} | "
        f"{row['parity'][0]['largest']:.1e} | {row['parity'][0]['ties']} | "
        f"{row['bytes'] / 1e6:.1f} | {row['seconds']:.0f} | {row['images_per_second']['torch']:.0f} | "
        f"{row['images_per_second']['onnxruntime']:.0f} |"
        for row in rows
    ]
    lines += [f"\n{row['network']}: {row['refused']}" for row in found["networks"] if "refused" in row]
    if found["left_out"]:
        lines += ["", f"Not measured, for lack of time: {', '.join(found['left_out'])}."]
    if found["forms"]:
        lines += [
            "",
            "Other formats, with networks trained for a few epochs:",
            "",
            "| network | format | MB | correct before | after | classes changed | largest difference | images/s |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for row in found["forms"]:
        part, speed = row["parity"][0], row.get("images_per_second", {}).get("onnxruntime")
        lines.append(
            f"| {row['network']} | {row['form']}, {row['precision']} | {row['bytes'] / 1e6:.1f} | "
            f"{part['correct_before']} of {part['images']} | {part['correct']} | {part['changed']} | "
            f"{part['largest']:.1e} | {f'{speed:.0f}' if speed else ''} |"
        )
    lines += [
        "",
        f"Fitting an image to the input size inside the graph, alone, {fit['interpolation']}, CPU time of one thread. {hardware(fit, '../')}.",
        "",
        "| image | to | ms | peak memory of the process |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['width']} x {row['height']} | {row['size']} x {row['size']} | {row['cpu_milliseconds']:.3g} | "
        f"{row['peak_mib']:.0f} MiB |"
        for row in fit["rows"]
    ]
    return "\n".join(lines)


def in_browser() -> str:
    """Return, for docs/export.md, the comparison of exported pages with their runs, from benchmarks/web_parity.py."""
    found = newest("web-parity")
    lines = [
        "Exported pages compared with their runs, on validation images as PNG and JPEG files. "
        f"{hardware(found, '../')}; Chromium {next(iter(found['sets'].values()))['chromium']}, one thread.",
        "",
        "| images | network | same class | largest difference in probability | per image in the page | with onnxruntime in Python | folder | one file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["sets"].items():
        times = (f"{row[key]:.1f} ms" for key in ("milliseconds", "onnxruntime_milliseconds"))
        sizes = (f"{row[key] / 1e6:.1f} MB" for key in ("folder_bytes", "single_file_bytes"))
        lines.append(
            f"| {name} | {row['network']} | {row['same_class']} of {row['images']} | {row['largest_difference']:.1g} | "
            f"{' | '.join((*times, *sizes))} |"
        )
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
    "README.md": partial(table, WORDS["README.md"]),
    "README.zh.md": lambda: chinese(table(WORDS["README.zh.md"])),
    "docs/reproduction.md": chapter,
    "docs/speed.md": speed,
    "docs/reliability.md": saving,
    "docs/own-images.md": partial(own_images, WORDS["docs/own-images.md"]),
    "docs/own-images.zh.md": lambda: chinese(own_images(WORDS["docs/own-images.zh.md"])),
    "docs/scale.md": scale,
    "docs/leaderboard.md": partial(leaderboard, WORDS["README.md"]),
    "docs/leaderboard.zh.md": lambda: chinese(leaderboard(WORDS["README.zh.md"])),
    "docs/export.md": lambda: f"{export()}\n\n{in_browser()}",
    "docs/serve.md": service,
}


def page(name: str) -> str:
    """Return the page `name` with its tables up to date."""
    text = (ROOT / name).read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{PAGES[name]()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    for readme in PAGES:
        (ROOT / readme).write_text(page(readme), encoding="utf-8")
        print(readme)
