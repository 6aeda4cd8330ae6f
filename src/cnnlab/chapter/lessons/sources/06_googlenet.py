# %% [markdown] lang="en"
# # After NiN: GoogLeNet
#
# Which window is best, 1x1, 3x3 or 5x5? GoogLeNet (2014) does not choose. An *Inception* block runs four paths with
# different windows over the same input and concatenates their outputs along the channels. Two of the paths first reduce
# the number of channels with a 1x1 convolution; otherwise the larger windows would be too expensive.

# %% [markdown] lang="zh"
# # NiN 之后：含并行连结的网络（GoogLeNet）
#
# 1x1、3x3、5x5，哪种窗口最好？GoogLeNet（2014）不做选择。**Inception** 块让四条窗口不同的路径并排处理同一个输入，再把
# 各自的结果在通道维度上连结。其中两条路径先用 1x1 卷积减少通道，否则大窗口的代价太高。

# %%
import torch
import torch.nn.functional as F
from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show
from cnnlab.models.googlenet import Inception

DATA = "digits"  # or "fashion-mnist": the chapter's own images, 30 MB, downloaded once
block = Inception(192, 64, (96, 128), (16, 32), 32)
x = torch.rand(1, 192, 12, 12)
for path in (block.path1, block.path2, block.path3, block.path4):
    print(tuple(path(x).shape))
print("concatenated:", tuple(block(x).shape))

# %% [markdown] lang="en"
# ## Shapes
#
# The whole network: a stem of two rows, nine blocks in three rows, and a single linear layer after the global average.

# %% [markdown] lang="zh"
# ## 形状
#
# 整个网络：前两行是起始层，中间三行共九个块，全局平均之后只有一个全连接层。

# %%
print(show.shapes("googlenet"))

# %% [markdown] lang="en"
# ## Training
#
# For images of 28 pixels two blocks suffice. Here they become a network, registered under a name so that it can be
# trained. Each convolution is followed by batch normalisation, the subject of the next lesson.

# %% [markdown] lang="zh"
# ## 训练
#
# 对 28 像素的图像，两个块就够了。下面用它们搭一个网络，再给它起个名字，就可以训练。每个卷积之后都有批量规范化，那是下
# 一课的内容。


# %%
def two_blocks(*, num_classes=10, in_channels=1, image_size=28):
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(in_channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        Inception(32, 16, (16, 32), (8, 16), 16, batch_norm=True),
        nn.MaxPool2d(2),
        Inception(80, 32, (32, 64), (16, 32), 32, batch_norm=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(160, num_classes),
    )


cnnlab.MODELS["two-blocks"] = two_blocks
settings = {"image_size": 28, "shift": 0, "learning_rate": 0.02, "batch_size": 32, "epochs": 5}
result = cnnlab.train("digits", data=DATA, limit=6000, model="two-blocks", **settings)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The maps that the four paths of the first block compute from one image. The 1x1 path sees single pixels of the block's
# input and follows the outlines; the last path starts with a pooling, which makes them broader.

# %% [markdown] lang="zh"
# ## 网络内部
#
# 第一个块的四条路径从同一张图像得到的特征图。1x1 路径只看块的输入中的单个像素，紧贴轮廓；最后一条以汇聚开头，轮廓变粗了。

# %%
show.maps(result, "1.path1", "1.path2", "1.path3", "1.path4", count=7)

# %% [markdown] lang="en"
# Which part of the image makes a 6 a 6? The last layers average each map, then compute a weighted sum of the averages.
# Weighting first and averaging afterwards gives the same logits, and in between a map of what each position adds to the
# logit of a class: its *class activation map*. Below each image is the map of the predicted class. A position of the map
# sees more of the image than the pixels that it is drawn over.

# %% [markdown] lang="zh"
# 图像中的哪一处使 6 成为 6？最后几层先对每张特征图求平均，再加权求和。反过来先加权、再平均，得到的 logits 相同，而中
# 间就出现了一张图，表示每个位置给某个类别的 logit 加了多少，即**类激活图**。每张图像的下面，是预测类别的类激活图。图中的一
# 个位置所看到的范围，比它盖住的那些像素大。

# %%
net = cnnlab.load_model(result.run).network
images, _ = show.held_out(result, 8)
with torch.no_grad():
    evidence = torch.einsum("kc,bchw->bkhw", net[-1].weight, net[:4](images))
    logits = net(images)
print(torch.allclose(evidence.mean((2, 3)) + net[-1].bias, logits, atol=1e-4), tuple(evidence.shape))
predicted = logits.argmax(1)
maps = F.interpolate(evidence, size=28, mode="bilinear")[range(8), predicted]
show.grid([*images, *maps], [""] * 8 + [result.run.classes[k] for k in predicted])

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## Results on Fashion-MNIST
#
# The d2l book trains GoogLeNet at 96 pixels without batch normalisation, from Xavier's weights. A row marked as limited
# cannot be compared with the printed one: that run ended before the network began to learn. `fast/googlenet` is the
# whole network with half the channels and batch normalisation, on all images at 28 pixels.

# %% [markdown] lang="zh"
# ## 在 Fashion-MNIST 上的结果
#
# d2l 原书在 96 像素上训练 GoogLeNet，用 Xavier 初始化，不用批量规范化。注明了限制条件的行不能与书上的数字相比：运行结束时网络还没开始学
# 习。`fast/googlenet` 是通道减半、加了批量规范化的整个网络，在全部 28 像素的图像上训练。

# %%
show.results("nin", "googlenet")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** What would the 5x5 path of the first block above cost without its 1x1 convolution? Compare
# multiply-adds and parameters.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 本课开头那个块的 5x5 路径如果没有 1x1 卷积，代价是多少？比较乘加次数和参数量。

# %% tags=["answer"]

# %% tags=["solution"]
direct = nn.Sequential(nn.Conv2d(192, 32, kernel_size=5, padding=2), nn.ReLU())
for net in (block.path3, direct):
    print(show.shapes(net, image_size=12, in_channels=192), end="\n\n")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** How large is the receptive field of each path, in pixels of the block's input? And after two such
# blocks in a row?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 每条路径的感受野有多大（按块的输入像素算）？连续两个这样的块之后呢？

# %% tags=["answer"]

# %% tags=["solution"]
from cnnlab.inspect.summary import summarize

for name in ("path1", "path2", "path3", "path4"):
    print(name, summarize(block.get_submodule(name), image_size=12, in_channels=192).receptive_field)
both = nn.Sequential(block, Inception(256, 128, (128, 192), (32, 96), 64))
print("two blocks:", summarize(both, image_size=12, in_channels=192).receptive_field)

# %% [markdown] lang="en" tags=["solution"]
# The widest path counts: 5 pixels after one block, 9 after two. Each output of the 1x1 path sees one pixel; the next
# block mixes it with outputs that see more.

# %% [markdown] lang="zh" tags=["solution"]
# 以最宽的路径为准：一个块之后是 5 像素，两个之后是 9 像素。1x1 路径的每个输出只看到一个像素；下一个块再把它们与看得更
# 多的输出混合起来。
