"""Write the results tables of the READMEs and docs from benchmarks/results/: python benchmarks/tables.py

No figure is typed by hand; a test compares the pages with what this makes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from cnnlab.experiments import CLASSICAL, EXPERIMENTS, markdown

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- results: written by `python benchmarks/tables.py`, from benchmarks/results/ -->"
END = "<!-- end of results -->"

WORDS = {
    "README.md": {
        "seeds": "The named recipes, {n} seeds each, figures of the last epoch, mean ± std. The manual's recipes look at the test set after "
        "each epoch, as the manual does; ours look at a validation split only. {hardware}.",
        "columns": "| recipe | | loss | train acc | acc, split | images/s, wall-clock with data | compute only | seconds in all |",
        "ours": "cnnlab",
        "printed": "printed",
        "peer": "Beside {peer} on the same network, recipe and data, {n} pairs of runs in turn, {epochs} epochs each. {hardware}.",
        "peer_columns": "| network | training, wall-clock with data: median (range) | whole process, imports and reading included | peak memory, all processes: cnnlab | d2l |",
        "times": "{median:.2f} times d2l's ({min:.2f} to {max:.2f})",
        "kaggle": "The competition, from Kaggle's archives to a valid `submission.csv`, one seed each. Accuracy is on the 5,000 labelled images held out; "
        "the test labels are held back. {hardware}.",
        "kaggle_columns": "| command | minutes in all | val acc, 1 look at each image | 6 looks | submission |",
        "prepare": "Reading an archive of {images:,} test images: {ours:.0f} s ({rate:,.0f} images/s, at most {memory:,.0f} MiB of memory besides mapped files), "
        "{ratio:.1f} times as fast as `7z x` and a loop with Pillow ({theirs:.0f} s; median of {n} pairs in turn, {min:.1f} to {max:.1f}). {hardware}.",
    },
    "README.zh.md": {
        "seeds": "各训练配方，每个 {n} 个种子，取最后一个周期，均值 ± 标准差。教材的配方每个周期都看测试集（与教材一致）；我们的配方只看验证集。{hardware}。",
        "columns": "| 配方 | | 损失 | 训练精度 | 精度（数据划分） | 图像/秒（含数据的实际时间） | 仅计算 | 总秒数 |",
        "ours": "cnnlab",
        "printed": "教材",
        "peer": "与 {peer} 比较：同样的网络、配方和数据，交替运行 {n} 对，每次 {epochs} 个周期。{hardware}。",
        "peer_columns": "| 网络 | 训练速度（含数据的实际时间）：中位数（范围） | 整个进程（含导入与读取数据） | 全部进程的内存峰值：cnnlab | d2l |",
        "times": "d2l 的 {median:.2f} 倍（{min:.2f} 到 {max:.2f}）",
        "kaggle": "竞赛：从 Kaggle 的压缩包到有效的 `submission.csv`，各一个种子。精度取自预留的 5,000 张有标签图像；测试标签不可得。{hardware}。",
        "kaggle_columns": "| 命令 | 总分钟数 | 验证精度（每张图像看 1 次） | 看 6 次 | 提交文件 |",
        "prepare": "读取 {images:,} 张测试图像的压缩包：{ours:.0f} 秒（每秒 {rate:,.0f} 张，除映射文件外内存至多 {memory:,.0f} MiB），"
        "是 `7z x` 加 Pillow 循环的 {ratio:.1f} 倍速（后者 {theirs:.0f} 秒；交替 {n} 对的中位数，{min:.1f} 到 {max:.1f}）。{hardware}。",
    },
}


def newest(name: str) -> dict[str, Any]:
    """The newest result of a benchmark, with its file's name."""
    path = max((ROOT / "benchmarks" / "results").glob(f"{name}_*.json"), key=lambda p: p.stem[-10:])
    return {**json.loads(path.read_text()), "file": path.name}


def hardware(result: dict[str, Any], up: str = "") -> str:
    env = result["environment"]
    link = f"[{env['date'][:10]}]({up}benchmarks/results/{result['file']})"
    return f"{env['device_name']}, {env['threads']} core{'s' * (env['threads'] != 1)}, torch {env['versions']['torch']}, {link}"


def table(words: dict[str, str]) -> str:
    def spread(value: dict[str, float], form: str = ".3f") -> str:
        return f"{value['mean']:{form}} ± {value['std']:{form}}"

    seeds, peer = newest("recipe-seeds"), newest("vs-d2l")
    lines = [words["seeds"].format(n=seeds["n"], hardware=hardware(seeds)), "", words["columns"], "|---" * 8 + "|"]
    for name, r in seeds["recipes"].items():
        key, printed = ("test_acc" if r["watch"] == "test" else "val_acc"), r["printed_by_the_manual"]
        total = mean(s["total_seconds"] for s in r["per_seed"])
        lines.append(
            f"| `{name}` | {words['ours']} | {spread(r['loss'])} | {spread(r['train_acc'])} | {spread(r[key])}, {r['watch']} | "
            f"{r['images_per_second']['mean']:,.0f} | {r['examples_per_second']['mean']:,.0f} | {total:.0f} |"
        )
        if printed:
            lines.append(
                f"| | {words['printed']} | {printed['loss']:.3f} | {printed['train_acc']:.3f} | {printed['test_acc']:.3f}, test | | | |"
            )
    lines += ["", words["peer"].format(peer=peer["peer"].replace("==", " "), n=peer["n"], epochs=peer["epochs"], hardware=hardware(peer)),
              "", words["peer_columns"], "|---|---|---|---|---|"]  # fmt: skip
    for name, r in peer["networks"].items():
        memory = r["peak_pss_mib"]
        lines.append(
            f"| {name} | {words['times'].format(**r['speed_ratio'])} | {r['process_ratio_median']:.2f} | {memory['cnnlab']:,.0f} MiB | {memory['d2l']:,.0f} MiB |"
        )
    return "\n".join([*lines, "", *competition(words)])


def competition(words: dict[str, str]) -> list[str]:
    runs, reading = [newest(f"competition-{label}") for label in ("10min", "1h")], newest("prepare")
    lines = [words["kaggle"].format(hardware=hardware(runs[-1])), "", words["kaggle_columns"], "|---" * 5 + "|"]
    for run in runs:
        looks = run["validation_accuracy_by_views"]
        file = run["submission"]
        lines.append(
            f"| `{run['shown_command']}` | {run['seconds'] / 60:.1f} | {looks['none']:.4f} | {looks['shift']:.4f} | "
            f"[{file}](benchmarks/results/{file}) |"
        )
    ours, theirs = reading["cnnlab"], reading["tutorial"]
    told = words["prepare"].format(
        images=reading["images"], ours=ours["seconds"], rate=ours["images_per_second"], memory=ours["peak_anonymous_mib"],
        theirs=theirs["seconds"], n=reading["n"], hardware=hardware(reading), ratio=reading["ratio"]["median"],
        min=reading["ratio"]["min"], max=reading["ratio"]["max"],
    )  # fmt: skip
    return [*lines, "", told]


def chapter() -> str:
    """The chapter's table, from the newest result of each label of benchmarks/reproduce.py."""
    labels = sorted({p.name.partition("_")[0] for p in (ROOT / "benchmarks" / "results").glob("reproduce-*.json")})
    results = [newest(label) for label in labels]
    # A row in full is not hidden by a limited one; else the later label's (a GPU's is later than full).
    rows: dict[str, dict[str, Any]] = {}
    for row in (row for result in results for row in result["rows"]):
        if row["name"] not in rows or not row["limited"] or rows[row["name"]]["limited"]:
            rows[row["name"]] = row
    order = [*CLASSICAL, *EXPERIMENTS]
    lines = [markdown(sorted(rows.values(), key=lambda row: order.index(row["name"])))]
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
                f"{row['seconds']:.0f} s in all, choosing included"
            )
        for what in ("gamma", "beta"):
            if what in row:
                values = ", ".join(f"{v:.3f}" for v in row[what])
                lines.append(f"- {row['title']}, seed {row['seeds'][0]}, learned {what} of the first layer: {values}")
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
    **{name: partial(table, words) for name, words in WORDS.items()},
    "docs/reproduction.md": chapter,
}


def page(name: str) -> str:
    """The page `name` as it should be."""
    text = (ROOT / name).read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{PAGES[name]()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    for readme in PAGES:
        (ROOT / readme).write_text(page(readme), encoding="utf-8")
        print(readme)
