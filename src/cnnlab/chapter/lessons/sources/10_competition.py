# %% [markdown] lang="en"
# # 1.6 The competition
#
# The assignment: from a competition's archives to a submission file. The steps are those of `cnnlab kaggle` and of the
# page docs/competition.md, which runs them on Kaggle's CIFAR-10. Here they run on a small competition of our own with
# the same kinds of files: handwritten digits as PNG images in two archives, a table of labels and a sample submission.
#
# ## 1. The files

# %% [markdown] lang="zh"
# # 1.6 竞赛
#
# 作业：从竞赛的压缩包出发，得到一份提交文件。步骤与 `cnnlab kaggle` 以及文档 docs/competition.zh.md 相同，那里用的是
# Kaggle 的 CIFAR-10。这里自己造一个小竞赛，文件的种类相同：两个压缩包里是手写数字的 PNG 图像，另有标签表和样例提交。
#
# ## 1. 文件

# %%
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

import cnnlab
from cnnlab import competition
from cnnlab.chapter.lessons import show

place = Path("little")


def pack(part, images):
    """Write an archive as Kaggle does: train/1.png, train/2.png, ..."""
    with zipfile.ZipFile(place / f"{part}.zip", "w") as archive:
        for number, image in enumerate(images, 1):
            png = BytesIO()
            Image.fromarray(image[0].numpy()).save(png, "PNG")
            archive.writestr(f"{part}/{number}.png", png.getvalue())


def write(name, labels):
    rows = [f"{number},{label}\n" for number, label in enumerate(labels, 1)]
    (place / name).write_text("id,label\n" + "".join(rows))


if not place.exists():
    place.mkdir()
    train, test = (cnnlab.load_images("digits", split) for split in ("train", "test"))
    pack("train", train.images)
    pack("test", test.images)
    write("trainLabels.csv", train.labels.tolist())
    write("sampleSubmission.csv", [0] * len(test))
    write("answers.csv", test.labels.tolist())  # only the teacher has this file
print(sorted(path.name for path in place.iterdir()))

# %% [markdown] lang="en"
# ## 2. Organise
#
# Nothing is unpacked into folders per class. Each image is decoded once, into one array of bytes, with its id and
# label. Then look at the images before you train anything.

# %% [markdown] lang="zh"
# ## 2. 整理
#
# 不必把图像解压到按类别分的文件夹里。每张图像只解码一次，写入同一个字节数组，同时记下编号和标签。训练之前，先看一看图
# 像。

# %%
work = competition.prepare(place, name="little", store="little-store", workers=1)
store = work.open_store()
print(tuple(store.train.images.shape), store.train.ids[:3], tuple(store.test_images.shape), store.test_ids[:3])
overview = competition.show(work)
print(overview.counts)
show.picture(overview.figure, "Sample images of the training set")

# %% [markdown] lang="en"
# ## 3. Augment
#
# Each image of a batch is shifted at random, independently of the others. Mirroring suits animals and cars, but would
# be wrong here: a mirrored 2 is not a digit.

# %% [markdown] lang="zh"
# ## 3. 增广
#
# 一个批量里的每张图像各自随机移动。左右翻转适合动物和汽车，在这里却不行：翻转的 2 不再是数字。

# %%
from cnnlab.data.augment import Augmentation
from cnnlab.data.loader import Loader, Preprocessing

preprocessing = Preprocessing.of(store.train.images, image_size=28, fit="pad", normalize=True)
loader = Loader(store.train, preprocessing, 32, torch.device("cpu"), augmentation=Augmentation(shift=2))
x, y = next(loader.shuffled(seed=0, epoch=0))
print(tuple(x.shape), tuple(y.shape))
show.grid(x[:16], [store.train.classes[k] for k in y[:16]])

# %% [markdown] lang="en"
# ## 4. Define the model and the training step
#
# `train_step` is one update: forward, loss, backward, step. Training repeats it.

# %% [markdown] lang="zh"
# ## 4. 定义模型和训练步
#
# `train_step` 做一次更新：前向、损失、反向、改权重。训练就是不断重复这一步。

# %%
torch.manual_seed(0)
model = cnnlab.build_model("lenet-bn", num_classes=10, in_channels=1, image_size=28)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for epoch in range(3):
    for step, (x, y) in enumerate(loader.shuffled(seed=0, epoch=epoch)):
        loss, correct = cnnlab.train_step(model, optimizer, x, y)
        if step % 20 == 0:
            print(f"epoch {epoch}, step {step}: loss {loss:.3f}, {correct} of {len(y)} correct")

# %% [markdown] lang="en"
# ## 5. Train and validate
#
# Train with a recipe that holds out part of each class. `views` has the accuracy with one view of each image, with its
# mirror image as a second view, and with six shifted and mirrored views.

# %% [markdown] lang="zh"
# ## 5. 训练与验证
#
# 按配方训练，每个类别留出一部分作验证。`views` 是三种精度：每张图像只用一个视图，加上镜像共两个视图，以及移动、翻转后
# 共六个视图。

# %%
trained = competition.train(work, replace(cnnlab.RECIPES["digits"], epochs=15))
print(trained.result)
print({views: round(accuracy, 3) for views, accuracy in trained.views.items()})

# %%
show.hardest(trained.result)

# %% [markdown] lang="en"
# ## 6. Retrain on everything, predict, submit
#
# The settings are chosen, so now the held-out images are used for training too. The probabilities of both networks are
# averaged. The file has the order of the sample submission, and every prediction stays with its image's id.

# %% [markdown] lang="zh"
# ## 6. 在全部数据上重新训练，预测，提交
#
# 设置已经选定，现在把留出的图像也用来训练。两个网络的概率取平均。文件的顺序与样例提交一致，每个预测始终跟着自己图像的
# 编号。

# %%
competition.retrain(work)
submitted = competition.submit(work)
print(submitted.written)
print(submitted.written.path.read_text()[:40])

# %% [markdown] lang="en"
# Whoever has the true labels can score the file. They have not been used until now.

# %% [markdown] lang="zh"
# 手里有正确标签的人可以评分。在此之前，这些标签从未用过。

# %%
print(competition.score(submitted.written.path, place / "answers.csv"))

# %% [markdown] lang="en"
# ## Results on Kaggle's files
#
# The same steps on Kaggle's files. Accuracy is on 5,000 held-out labelled images.

# %% [markdown] lang="zh"
# ## 在 Kaggle 文件上的结果
#
# 同样的步骤用在 Kaggle 的文件上。精度来自留出的 5,000 张有标签的图像。

# %%
show.competition()

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** The d2l book sorts the test images by name, and takes the numbers 1 to N, also sorted as text, as
# their ids. Image 3 of 100 is missing. How many of the 99 predictions get the id of another image?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** d2l 原书把测试图像按名字排序，再把同样按文本排序的 1 到 N 当作它们的编号。100 张图像中少了第 3 张。99 个
# 预测中，有多少个得到了别的图像的编号？

# %% tags=["answer"]

# %% tags=["solution"]
ids = sorted(str(i) for i in range(1, 101) if i != 3)
guessed = sorted(str(i) for i in range(1, len(ids) + 1))
wrong = [(image, name) for image, name in zip(ids, guessed, strict=True) if image != name]
print(len(wrong), "of", len(ids), wrong[:5])

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** The d2l book sums the losses of a batch of 128 images and uses a learning rate of 2e-4. Which learning
# rate gives the same update with the mean of the losses? Show it with one gradient.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** d2l 原书把一个批量 128 张图像的损失相加，学习率为 2e-4。如果改用损失的平均值，学习率是多少时更新相同？用
# 一次梯度来说明。

# %% tags=["answer"]

# %% tags=["solution"]
x, y = preprocessing(store.train.images[:128]), store.train.labels[:128]
gradients = {}
for reduction in ("sum", "mean"):
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y, reduction=reduction).backward()
    gradients[reduction] = model[0].weight.grad.clone()
print(f"ratio {(gradients['sum'] / gradients['mean']).median():.1f}, so the rate is {128 * 2e-4}")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 3.** Which `views` did the submission use, and why? Write another submission with `views="flip"`, score it,
# and compare.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 3.** 提交用的是哪种 `views`，为什么？用 `views="flip"` 另外写一份提交文件，评分，比较。

# %% tags=["answer"]

# %% tags=["solution"]
print(submitted.views)
mirrored = competition.submit(work, views="flip", out="mirrored.csv")
print(competition.score(mirrored.written.path, place / "answers.csv"))

# %% [markdown] lang="en" tags=["solution"]
# The views with the highest validation accuracy; if several are equal, the fewest views. The network has never seen
# mirrored digits, so its predictions for them only do harm.

# %% [markdown] lang="zh" tags=["solution"]
# 验证精度最高的那种；一样高时取视图最少的。网络从没见过翻转的数字，对它们的预测只会添乱。
