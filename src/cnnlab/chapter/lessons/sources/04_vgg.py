# %% [markdown] lang="en"
# # 1.2 VGG: blocks
#
# AlexNet does not tell us how to design the next network. VGG (2014) does: repeat one kind of *block*, a few 3x3
# convolutions that keep the side length, then a pooling that halves it. More convolutions per block make a deeper
# network; a list of numbers describes the whole architecture.
#
# Why 3x3? Two of them in a row see 5x5 pixels, with fewer weights than one 5x5 convolution and one more ReLU.

# %% [markdown] lang="zh"
# # 1.2 使用块的网络（VGG）
#
# AlexNet 没有告诉人们下一个网络该怎样设计。VGG（2014）给出了办法：重复同一种**块**，即若干个保持边长的 3x3 卷积，再加
# 一个把边长减半的汇聚。块里的卷积多一些，网络就深一些；一串数字就描述了整个网络。
#
# 为什么用 3x3？两个连在一起能看到 5x5 的像素，权重却比一个 5x5 卷积少，还多了一个 ReLU。

# %%
from functools import partial

from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show
from cnnlab.models.vgg import VGG11, vgg, vgg_block

DATA = "digits"  # or "fashion-mnist": the chapter's own images, 30 MB, downloaded once
two = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
one = nn.Sequential(nn.Conv2d(64, 64, 5, padding=2))
for net in (two, one):
    print(show.shapes(net, image_size=56, in_channels=64), end="\n\n")

# %% [markdown] lang="en"
# ## Shapes
#
# A block, and VGG-11: eight convolutions in five blocks, and three linear layers.

# %% [markdown] lang="zh"
# ## 形状
#
# 一个块，以及 VGG-11：五个块中共八个卷积层，再加三个全连接层。

# %%
print(vgg_block(2, 128, 256))
print(VGG11)
print(show.shapes("vgg11"))

# %% [markdown] lang="en"
# ## Training
#
# The manual divides all channels by four and enlarges the images to 224 pixels. `vgg11-small` has the same channels and
# a smaller head. It takes images of 32 pixels, which five halvings reduce to 1.

# %% [markdown] lang="zh"
# ## 训练
#
# 教材把所有通道数除以四，并把图像放大到 224 像素。`vgg11-small` 的通道数与此相同，末尾的全连接层更小，图像是 32 像素：
# 减半五次正好剩 1。

# %%
result = cnnlab.train("fast/vgg11", data=DATA, limit=6000, batch_size=64, epochs=10, precision="float32")
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The same image after the first, second and third block: the maps get smaller and resemble the image less and less.
# They are black where the ReLU has set negative values to 0.

# %% [markdown] lang="zh"
# ## 网络内部
#
# 同一张图像经过第一、第二、第三个块之后：特征图越来越小，也越来越不像原图。全黑的地方，是 ReLU 把负值置成了 0。

# %%
show.maps(result, "0", "1", "2")

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## Results on Fashion-MNIST
#
# The manual's results on Fashion-MNIST, and `fast/vgg11`: the small network above on all images.

# %% [markdown] lang="zh"
# ## 在 Fashion-MNIST 上的结果
#
# 教材给出的 Fashion-MNIST 结果，以及 `fast/vgg11`：上面的小网络，在全部图像上训练。

# %%
show.results("alexnet", "vgg11")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** VGG-16 is ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)). Where does the 16 in its name come from?
# Count the layers.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** VGG-16 是 ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))。名字里的 16 从哪里来？数一数网络的层。

# %% tags=["answer"]

# %% tags=["solution"]
layers = list(cnnlab.build_model("vgg16", image_size=32).modules())
print(sum(isinstance(m, nn.Conv2d) for m in layers), "+", sum(isinstance(m, nn.Linear) for m in layers))

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** How much more work does VGG-11 do at 224 pixels than at 32? How many more weights does it have, and
# where?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** VGG-11 在 224 像素时的计算量是 32 像素时的多少倍？权重是多少倍？多出来的在哪里？

# %% tags=["answer"]

# %% tags=["solution"]
from cnnlab.inspect.summary import summarize

large, small = summarize("vgg11", image_size=224), summarize("vgg11", image_size=32)
print(f"work {large.multiply_adds / small.multiply_adds:.1f}, weights {large.parameters / small.parameters:.1f}")
print(max(large.layers, key=lambda layer: layer.parameters))

# %% [markdown] lang="en" tags=["solution"]
# The convolutions do (224/32)² = 49 times the work with the same weights. The overall ratio is slightly lower, since
# two of the linear layers stay the same. All additional weights are in the first linear layer, which has 49 times the
# inputs.

# %% [markdown] lang="zh" tags=["solution"]
# 卷积层用同样的权重做 (224/32)² = 49 倍的计算；总的比值略低，因为有两个全连接层没有变。多出来的权重全在第一个全连接层，它
# 的输入变成了 49 倍。

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 3.** Design your own VGG with at most a tenth of the weights of `vgg11-small`, and train it with the same
# recipe. How much accuracy does it lose?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 3.** 设计一个你自己的 VGG，权重最多是 `vgg11-small` 的十分之一，用同样的配方训练。精度会损失多少？

# %% tags=["answer"]

# %% tags=["solution"]
arch = ((1, 16), (1, 32), (1, 48), (1, 48), (1, 48))
cnnlab.MODELS["vgg-mine"] = partial(vgg, arch, hidden=128, image_size=32)
mine = cnnlab.train(result.run.recipe, model="vgg-mine")
for name, trained in (("vgg11-small", result), ("vgg-mine", mine)):
    print(f"{name}: {trained.summary['parameters']:,} parameters, val acc {trained.summary['val_acc']:.3f}")
show.compare({"vgg11-small": result, "vgg-mine": mine})

# %% [markdown] lang="en" tags=["solution"]
# On so few and such simple images, a small network can do nearly as well. Each training is a single run, and a
# difference of a few thousandths between two runs means nothing: repeat both with `seed=1` and `seed=2`.

# %% [markdown] lang="zh" tags=["solution"]
# 图像这么少、这么简单，小网络也能做得差不多。这两次训练各只运行了一次，相差千分之几说明不了什么：请用 `seed=1` 和 `seed=2`
# 各重复一次。
