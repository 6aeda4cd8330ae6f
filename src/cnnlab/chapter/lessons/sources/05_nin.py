# %% [markdown] lang="en"
# # 1.3 NiN: networks in the network
#
# AlexNet and VGG end in linear layers that hold most of their weights and forget where anything was. NiN (2013) does
# without. A *1x1 convolution* is a linear layer at each pixel, over its channels: a small network that is applied
# everywhere. The last block has one channel for each class; the *global average* of a channel is that class's score.
#
# The cells run on the handwritten digits that come with cnnlab. `DATA = "fashion-mnist"` takes the chapter's own images
# instead (30 MB, downloaded once): at most 6,000 of them, by the recipe's `limit`; 0 takes all.

# %% [markdown] lang="zh"
# # 1.3 NiN：网络中的网络
#
# AlexNet 和 VGG 以线性层结尾：大部分权重在那里，东西位于图像何处的信息也丢在那里。NiN（2013）不用线性层。**1x1 卷积**相当于在每个像素上，对它的
# 各个通道做一次线性变换：一个处处使用的小网络。最后一个块给每个类别一个通道；该通道的**全局平均**就是这个类别的得分。
#
# 下面的单元用 cnnlab 自带的手写数字运行。改成 `DATA = "fashion-mnist"`，就换成本章的图像（30 MB，只下载一次）：配方中的 `limit` 规定至多用
# 6,000 张，设为 0 则用全部。

# %%
import torch
import torch.nn.functional as F
from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show
from cnnlab.models.nin import nin, nin_block

DATA = "digits"
torch.manual_seed(0)
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
# reason that comes below. Twelve layers start slowly: the optimiser here is Muon, which was made for matrices and filters.

# %% [markdown] lang="zh"
# ## 训练
#
# `nin-small` 结构相同，用于 28 像素的图像，通道数是三分之一。它还去掉了最后一个 ReLU，原因见下文。十二个卷积层起步很慢：这里的优化器是专为矩
# 阵和滤波器设计的 Muon。

# %%
recipe = cnnlab.RECIPES["fast/nin"].changed(
    data=DATA, limit=6000, image_size=28, batch_size=32, epochs=6, precision="float32"
)
recipe = recipe.changed(optimizer="muon", learning_rate=0.05, momentum=0.6)
result = cnnlab.train(recipe)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The first block's maps of one image. Then the last block's, one for each class, whose averages are the logits: as no
# linear layer fixes the size, the network takes a larger picture as it is. Here are six validation images in one, and of
# each place the probability of each class. The network has never seen more than one at a time, and still finds several of
# them where they stand.

# %% [markdown] lang="zh"
# ## 看看里面
#
# 先是第一个块从一张图像得到的特征图。再看最后一个块，它给每个类别一张特征图，平均值就是 logits：没有线性层固定尺寸，网络可以直接接受更大的图像。
# 下面把六张验证图像拼成一张，画出每个位置属于每个类别的概率。网络从没同时见过两个目标，却仍能在正确的位置上找到其中几个。

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
# The manual's NiN ends in a ReLU, so that no logit can be negative. Suppose that one class is pushed below zero for all
# images. Its logit is then 0, and no gradient reaches its filter: nothing that it learns itself can bring it back.

# %% [markdown] lang="zh"
# ## 会出什么错
#
# 教材的 NiN 以 ReLU 结尾，所以任何 logit 都不会是负的。假设某个类别对所有图像都被压到零以下：它的 logit 就是 0，梯度传不到它的滤波器，仅凭自己
# 再也学不回来。

# %%
x, y = torch.rand(20, 1, 28, 28), torch.arange(20) % 10
for last_relu in (True, False):
    net = nin(small=True, image_size=28, last_relu=last_relu)
    last = net[7][4]
    last.bias.data[3] = -100
    F.cross_entropy(net(x), y).backward()
    print(f"last ReLU {last_relu}: largest gradient of class 3's filter {last.weight.grad[3].abs().max():.6f}")

# %% [markdown] lang="en"
# A plausible cause of bad runs: the manual's source has printed .790 and .867 for the same recipe. That it is the cause is
# not shown.
#
# ## In full
#
# What the manual prints for Fashion-MNIST, and the small networks on all images of 28 pixels (VGG: 32).

# %% [markdown] lang="zh"
# 这可能就是有时结果很差的原因：同一个配方，教材的来源印出过 .790 和 .867。是否真是如此，还没有证明。
#
# ## 完整实验
#
# 教材给出的 Fashion-MNIST 结果，以及各个小网络在全部 28 像素（VGG 为 32）图像上的结果。

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
# the same recipe, and compare. (Its children 0, 2, 4 and 7 are the blocks.)

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 块里的两个 1x1 卷积有什么贡献？搭一个没有它们的小网络，用同样的配方训练，做比较。（它的第 0、2、4、7 个子模块就是各个块。）

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

# %% [markdown] lang="en" tags=["solution"]
# On so few images nothing: four layers learn sooner than twelve, and end no worse. What 1x1 convolutions can do, mix the
# channels of a pixel in a way that is not linear, has to be worth the depth that it costs. As a cheap way to change the
# number of channels they have stayed: see the next lessons.

# %% [markdown] lang="zh" tags=["solution"]
# 图像这么少时没有贡献：四层比十二层学得快，最后也不差。1x1 卷积能把一个像素的各个通道非线性地混合起来，但这要抵得上它增加的深度才划算。作为改变
# 通道数的廉价办法，它们一直沿用至今：见后面的课。
