# %% [markdown] lang="en"
# # 1.3 NiN: networks in the network
#
# AlexNet and VGG end in linear layers that hold most of their weights and forget where anything was. NiN (2013) does
# without. A *1x1 convolution* is a linear layer at each pixel, over its channels: a small network that is applied
# everywhere. The last block has one channel for each class; the *global average* of a channel is that class's score.
#
# The cells run on the handwritten digits that come with cnnlab. For the chapter's own images write
# `DATA = "fashion-mnist"` (30 MB, downloaded once) and add `limit=6000` where it trains.

# %% [markdown] lang="zh"
# # 1.3 NiN：网络中的网络
#
# AlexNet 和 VGG 的末尾是线性层，权重大多在那里，东西在图像的哪里也在那里丢掉了。NiN（2013）不用它们。*1x1 卷积*就是在每个像素上、对它的
# 各个通道做一次线性层：一个到处使用的小网络。最后一个块对每个类别有一个通道；一个通道的*全局平均*就是该类别的得分。
#
# 以下单元用 cnnlab 自带的手写数字运行。要用本章的图像，写 `DATA = "fashion-mnist"`（30 MB，只下载一次），并在训练处加上 `limit=6000`。

# %%
import torch
import torch.nn.functional as F
from torch import nn

import cnnlab
from cnnlab.lessons import show
from cnnlab.models.nin import nin, nin_block

DATA = "digits"
x = torch.rand(2, 3, 4, 4)
conv = nn.Conv2d(3, 5, kernel_size=1)
linear = nn.Linear(3, 5)
linear.weight.data = conv.weight.data.flatten(1)
linear.bias.data = conv.bias.data
at_each_pixel = linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
print(tuple(conv(x).shape), torch.allclose(conv(x), at_each_pixel, atol=1e-6))

# %% [markdown] lang="en"
# ## Shapes
#
# A block, and the whole network: not a single linear layer, and the same number of weights for every image size.

# %% [markdown] lang="zh"
# ## 形状
#
# 一个块，和整个网络：没有一个线性层，权重数量与图像大小无关。

# %%
print(nin_block(1, 96, 11, 4, 0))
print(show.shapes("nin"))

# %% [markdown] lang="en"
# ## Training
#
# `nin-small` is the same for images of 28 pixels, with a third of the channels. It also leaves out the last ReLU, for a
# reason that comes below.

# %% [markdown] lang="zh"
# ## 训练
#
# `nin-small` 结构相同，用于 28 像素的图像，通道是三分之一。它还去掉了最后一个 ReLU，原因见下文。

# %%
recipe = cnnlab.RECIPES["fast/nin"].changed(data=DATA, image_size=28, batch_size=64, epochs=10, precision="float32")
result = cnnlab.train(recipe)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The first block's maps of one image; then the last block's, one for each class: their averages are the logits.

# %% [markdown] lang="zh"
# ## 看里面
#
# 第一个块对一张图像的特征图；然后是最后一个块的，每个类别一张：它们的平均值就是 logits。

# %%
show.maps(result, "0")

# %%
show.maps(result, "7")

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## What goes wrong
#
# The manual's NiN ends in a ReLU, so that no logit can be negative. Suppose that one class is pushed below zero for all
# images. Its logit is then 0, and no gradient reaches its filter: nothing that it learns itself can bring it back.

# %% [markdown] lang="zh"
# ## 会出什么错
#
# 教材的 NiN 以 ReLU 结尾，所以没有一个 logit 能是负的。假设某个类别对所有图像都被压到零以下：它的 logit 就是 0，梯度到不了它的滤波器，
# 它自己再也学不回来。

# %%
x, y = torch.rand(20, 1, 28, 28), torch.arange(20) % 10
for last_relu in (True, False):
    net = nin(small=True, image_size=28, last_relu=last_relu)
    last = net[7][4]
    last.bias.data[3] = -100
    F.cross_entropy(net(x), y).backward()
    print(f"last ReLU {last_relu}: largest gradient of class 3's filter {last.weight.grad[3].abs().max():.6f}")

# %% [markdown] lang="en"
# A plausible cause of the manual's bad runs: its authors print .790 and .867 for one recipe. That it is the cause is not
# shown.
#
# ## In full

# %% [markdown] lang="zh"
# 这可能是教材中那些坏结果的原因：同一个配方，作者印出过 .790 和 .867。是否真是这个原因，没有证明。
#
# ## 完整的结果

# %%
show.results("alexnet", "vgg11", "nin")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** How many parameters does AlexNet spend behind its convolutions, and how many NiN in its last block?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** AlexNet 在卷积层之后用了多少参数？NiN 的最后一个块用了多少？

# %% tags=["answer"]

# %% tags=["solution"]
alexnet = cnnlab.build_model("alexnet")
head = sum(p.numel() for layer in alexnet if isinstance(layer, nn.Linear) for p in layer.parameters())
block = sum(p.numel() for p in cnnlab.build_model("nin")[7].parameters())
print(f"{head:,} and {block:,}: a factor of {head / block:,.0f}")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** What do the two 1x1 convolutions of a block contribute? Build the small network without them, train it by
# the same recipe, and compare. (`net[0]`, `net[2]`, `net[4]` and `net[7]` are the blocks.)

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 块里的两个 1x1 卷积有什么贡献？搭一个没有它们的小网络，用同样的配方训练，做比较。（`net[0]`、`net[2]`、`net[4]` 和 `net[7]`
# 是各个块。）

# %% tags=["answer"]

# %% tags=["solution"]


def without_1x1(**sizes):
    net = nin(small=True, last_relu=False, **sizes)
    for i in (0, 2, 4, 7):
        net[i] = net[i][:2] if i < 7 else net[i][:1]  # the last one keeps no ReLU
    return net


cnnlab.MODELS["nin-without"] = without_1x1
without = cnnlab.train(recipe.changed(model="nin-without"))
for name, trained in (("with", result), ("without", without)):
    print(f"{name}: {trained.summary['parameters']:,} parameters, val acc {trained.summary['val_acc']:.3f}")
show.compare({"with 1x1": result, "without 1x1": without})
