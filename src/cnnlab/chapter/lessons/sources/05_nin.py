# %% [markdown] lang="en"
# # 1.3 NiN: networks in the network
#
# AlexNet and VGG end in linear layers. The first of them has a weight for every position of every channel, so most of
# the weights are there. NiN (2013) has no linear layers. A *1x1 convolution* is a linear layer over the channels of each
# pixel: a small network that is applied everywhere. The last block has one channel per class, and the *global average*
# of a channel is that class's score. Averaging needs no weights; it also forgets where in the map something was.

# %% [markdown] lang="zh"
# # 1.3 网络中的网络（NiN）
#
# AlexNet 和 VGG 以全连接层结尾。其中第一层对每个通道的每个位置都有一个权重，所以大部分权重在那里。NiN（2013）不用全连接
# 层。**1x1 卷积**相当于在每个像素上，对它的各个通道使用一个全连接层：一个处处使用的小网络。最后一个块给每个类别一个通道，
# 该通道的**全局平均**就是这个类别的得分。求平均不需要权重，同时也忘掉了特征出现在图中何处。

# %%
import torch
import torch.nn.functional as F
from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show
from cnnlab.models.nin import nin, nin_block

DATA = "digits"  # or "fashion-mnist": the chapter's own images, 30 MB, downloaded once
torch.manual_seed(0)
x = torch.rand(2, 3, 4, 4)
conv = nn.Conv2d(3, 5, kernel_size=1)
linear = nn.Linear(3, 5)
linear.weight.data = conv.weight.data.flatten(1)
linear.bias.data = conv.bias.data
per_pixel = linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
print(tuple(conv(x).shape), torch.allclose(conv(x), per_pixel, atol=1e-6))

# %% [markdown] lang="en"
# ## Shapes
#
# A block, and the whole network: no linear layers, and the same number of weights for every image size.

# %% [markdown] lang="zh"
# ## 形状
#
# 一个块，和整个网络：没有全连接层，权重数量与图像大小无关。

# %%
print(nin_block(1, 96, 11, 4, 0))
print(show.shapes("nin"))

# %% [markdown] lang="en"
# ## Training
#
# `nin-small` has the same structure for images of 28 pixels, with a third of the channels. It also omits the last ReLU,
# for a reason explained below. The optimizer is Muon, which was designed for matrices and filters.

# %% [markdown] lang="zh"
# ## 训练
#
# `nin-small` 结构相同，用于 28 像素的图像，通道数是三分之一。它还去掉了最后一个 ReLU，原因见下文。优化器用 Muon，它是专为
# 矩阵和卷积核设计的。

# %%
muon = {"optimizer": "muon", "learning_rate": 0.05, "momentum": 0.6}
result = cnnlab.train(
    "fast/nin", data=DATA, limit=6000, image_size=28, batch_size=32, epochs=6, precision="float32", **muon
)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# First the maps of the first block for one image. Then those of the last block, one per class, whose averages are the
# logits. Since no linear layer fixes the size, the network also accepts larger pictures. Here six validation images are
# combined into one, and the maps show the probability of each class at each position. The network has never seen more
# than one digit at a time, but it still finds several of them in the right place.

# %% [markdown] lang="zh"
# ## 网络内部
#
# 先是第一个块从一张图像得到的特征图。再看最后一个块，它给每个类别一张特征图，平均值就是 logits。没有全连接层固定尺寸，
# 所以网络可以直接接受更大的图像。下面把六张验证图像拼成一张，画出每个位置属于每个类别的概率。网络从没同时见过两个目
# 标，却仍能在正确的位置上找到其中几个。

# %%
show.maps(result, "0")

# %%
images, labels = show.held_out(result, 6)
together = torch.cat([torch.cat(list(images[row : row + 3]), dim=2) for row in (0, 3)], dim=1)
net = cnnlab.load_model(result.run).network
with torch.no_grad():
    of_classes = net[:8](together[None])[0]
print(tuple(together.shape), "->", tuple(of_classes.shape))
show.grid([together, *of_classes.softmax(0)], ["six images", *result.run.classes], columns=6)

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## What goes wrong
#
# The manual's NiN ends in a ReLU, so no logit can be negative. Suppose that one class is pushed below zero for all
# images. Its logit is then 0, and no gradient reaches its filter, which therefore cannot recover by itself.

# %% [markdown] lang="zh"
# ## 会出什么错
#
# 教材的 NiN 以 ReLU 结尾，所以任何 logit 都不会是负的。假设某个类别对所有图像都被压到零以下：它的 logit 就是 0，梯度
# 传不到它的卷积核，它自己再也恢复不过来。

# %%
x, y = torch.rand(20, 1, 28, 28), torch.arange(20) % 10
for last_relu in (True, False):
    net = nin(small=True, image_size=28, last_relu=last_relu)
    last = net[7][4]
    last.bias.data[3] = -100
    F.cross_entropy(net(x), y).backward()
    print(f"last ReLU {last_relu}: largest gradient of class 3's filter {last.weight.grad[3].abs().max():.6f}")

# %% [markdown] lang="en"
# This is a plausible cause of bad runs: the d2l book has printed .790 and .867 for the same recipe. But nobody has
# shown that it is the cause.
#
# ## Results on Fashion-MNIST
#
# The manual's results on Fashion-MNIST, and the small networks on all images at 28 pixels (VGG: 32).

# %% [markdown] lang="zh"
# 这可能就是有时结果很差的原因：同一个配方，d2l 原书印出过 .790 和 .867。是否真是如此，还没有证明。
#
# ## 在 Fashion-MNIST 上的结果
#
# 教材给出的 Fashion-MNIST 结果，以及各个小网络在全部 28 像素（VGG 为 32）图像上的结果。

# %%
show.results("alexnet", "vgg11", "nin")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** How many parameters does AlexNet have after its convolutions, and how many does NiN have in its last
# block?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** AlexNet 在卷积层之后用了多少参数？NiN 的最后一个块用了多少？

# %% tags=["answer"]

# %% tags=["solution"]
alexnet = cnnlab.build_model("alexnet")
head = sum(p.numel() for layer in alexnet if isinstance(layer, nn.Linear) for p in layer.parameters())
block = sum(p.numel() for p in cnnlab.build_model("nin")[7].parameters())
print(f"{head:,} and {block:,}: a factor of {head / block:,.0f}")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** What do the two 1x1 convolutions of a block contribute? Build the small network without them, train it
# with the same recipe, and compare. (Its children 0, 2, 4 and 7 are the blocks.)

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 块里的两个 1x1 卷积有什么贡献？搭一个没有它们的小网络，用同样的配方训练，做比较。（小网络的第 0、2、4、7
# 个子模块就是各个块。）

# %% tags=["answer"]

# %% tags=["solution"]


def without_1x1(**sizes):
    net = nin(small=True, last_relu=False, **sizes)
    for i in (0, 2, 4, 7):
        net[i] = net[i][:2] if i < 7 else net[i][:1]  # the last one keeps no ReLU
    return net


cnnlab.MODELS["nin-without"] = without_1x1
without = cnnlab.train(result.run.recipe, model="nin-without")
for name, trained in (("with", result), ("without", without)):
    print(f"{name}: {trained.summary['parameters']:,} parameters, val acc {trained.summary['val_acc']:.3f}")
show.compare({"with 1x1": result, "without 1x1": without})

# %% tags=["solution"]
show.seeds("05_nin", epoch=1)

# %% tags=["solution"]
show.seeds("05_nin")

# %% [markdown] lang="en" tags=["solution"]
# On these few digits, nothing: with all three seeds in the tables, the four layers learn faster than the twelve, and in
# the end the two differ by at most one of 143 images. 1x1 convolutions mix the channels of a pixel nonlinearly, which
# must be worth the additional depth. They are still used as a cheap way to change the number of channels: see the next
# lessons.

# %% [markdown] lang="zh" tags=["solution"]
# 在这么少的手写数字上没有贡献：表中三个种子都是四层比十二层学得快，最后两者至多相差 143 张图像中的一张。1x1 卷积把一个像素的各个通道非线性地混合起
# 来，但要抵得上它增加的深度才划算。作为改变通道数的廉价办法，它一直沿用至今：见后面几课。
