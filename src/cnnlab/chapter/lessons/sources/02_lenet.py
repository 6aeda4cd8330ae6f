# %% [markdown] lang="en"
# # Before the chapter: LeNet
#
# LeNet (1998) learns its features together with the classifier. A *convolution* slides a small window over the image
# and computes the same weighted sum at each position. It has few weights, and what it recognizes in one corner it
# recognizes in every other. *Pooling* then makes the map coarser, so that small shifts matter less. Two rounds of this
# are followed by three linear layers.
#
# The cells run on the handwritten digits that come with cnnlab. Set `DATA = "fashion-mnist"` to use the chapter's own
# images (30 MB, downloaded once). The recipe's `limit` takes at most 6,000 of them; 0 takes all.

# %% [markdown] lang="zh"
# # 本章之前：LeNet
#
# LeNet（1998）把特征和分类器一起学出来。**卷积**让一个小窗口滑过图像，在每个位置做同样的加权求和：权重很少，而且在一
# 处能认出的东西，在别处也能认出。**汇聚**再把特征图变粗，小的平移影响就小了。这样做两轮，后面接三个全连接层。
#
# 下面的单元格使用 cnnlab 自带的手写数字。改成 `DATA = "fashion-mnist"`，就换成本章的图像（30 MB，只下载一次）；配方中
# 的 `limit` 规定最多用 6,000 张，设为 0 则全部使用。

# %%
from functools import partial

import torch
from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show

DATA = "digits"
conv = nn.Conv2d(1, 6, kernel_size=5, padding=2)
pool = nn.AvgPool2d(kernel_size=2, stride=2)
x = torch.rand(1, 1, 28, 28)
print(tuple(x.shape), "->", tuple(conv(x).shape), "->", tuple(pool(conv(x)).shape))
dense = x.numel() * conv(x).numel()
print(f"weights of the convolution: {conv.weight.numel():,}; of a linear layer in its place: {dense:,}")

# %% [markdown] lang="en"
# ## Shapes
#
# *Multiply-adds* are the work for one image. The *receptive field* is the side of the square of input pixels that one
# output value depends on. Most of the work is in the convolutions, but most of the weights are in the linear layers.

# %% [markdown] lang="zh"
# ## 形状
#
# **乘加次数**（multiply-adds）是处理一张图像的计算量；**感受野**（receptive field）是一个输出值所依赖的那块输入像素的
# 边长。计算量大多在卷积层，权重大多在全连接层。

# %%
print(show.shapes("lenet"))

# %% [markdown] lang="en"
# ## Training
#
# A recipe, here `fast/lenet`, holds all settings of a training as data; keywords replace some of them. Part of the
# training images is held out and evaluated after each epoch: the dashed line. With sigmoids, little happens at first
# (exercise 2).

# %% [markdown] lang="zh"
# ## 训练
#
# 配方（recipe，这里是 `fast/lenet`）以数据的形式记下一次训练的全部设置，关键字参数改动其中几项。一部分训练图像留作验
# 证，每个迭代周期之后评估一次，即图中的虚线。用 sigmoid，一开始几乎没有进展（练习 2）。

# %%
result = cnnlab.train("fast/lenet", data=DATA, limit=6000, image_size=28, batch_size=32, epochs=15)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The six learned windows of the first layer; the feature maps that they compute from one image; and the images that the
# network finds hardest. Titles show `true → predicted` for mistakes, else the class and its probability.

# %% [markdown] lang="zh"
# ## 网络内部
#
# 第一层学到的六个窗口；它们从一张图像得到的特征图；以及网络觉得最难的图像：判错的标为“真实 → 预测”，判对的标出类别和
# 概率。

# %%
show.filters(result)

# %%
show.maps(result, "0")

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## Results on Fashion-MNIST
#
# The manual's recipe on all of Fashion-MNIST: plain SGD for ten epochs. The printed figures come from one run without a
# fixed seed; ours are mean ± standard deviation over several seeds. The last row is our own recipe for the same
# network.

# %% [markdown] lang="zh"
# ## 在 Fashion-MNIST 上的结果
#
# 教材的配方，用在整个 Fashion-MNIST 上：普通的 SGD，十个迭代周期。书上的数字来自一次没有固定种子的运行；我们的是多个种子
# 的均值 ± 标准差。最后一行是我们自己的配方，网络相同。

# %%
show.results("lenet")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** Calculate by hand how many parameters the second convolution and the first linear layer have. Then
# check.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 先手算第二个卷积层和第一个全连接层各有多少参数，再用代码验证。

# %% tags=["answer"]

# %% tags=["solution"]
lenet = cnnlab.build_model("lenet")
for layer, expected in ((lenet[3], 16 * (6 * 5 * 5 + 1)), (lenet[7], 120 * (16 * 5 * 5 + 1))):
    print(layer, expected, sum(p.numel() for p in layer.parameters()))

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** Replace each sigmoid by a ReLU, then average pooling by max pooling, then both. Also keep LeNet as it
# is and change its initial weights (`init="xavier-uniform"`). Which change makes learning start early? Your own network
# is a function of `num_classes`, `in_channels` and `image_size`; add it to `cnnlab.MODELS` under a name and train it
# like any other. Keep the rest of the recipe.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 先把每个 sigmoid 换成 ReLU，再把平均汇聚换成最大汇聚，再两样都换。另外，LeNet 不变，只换初始权重
# （`init="xavier-uniform"`）。哪一项改动使学习早早开始？自己的网络写成一个函数，参数是 `num_classes`、`in_channels` 和
# `image_size`；在 `cnnlab.MODELS` 里给它起个名字，就能像其他网络一样训练。配方的其余设置不变。

# %% tags=["answer"]

# %% tags=["solution"]


def changed(relu, maximum, **sizes):
    net = cnnlab.build_model("lenet", **sizes)
    for i, layer in enumerate(net):
        if relu and isinstance(layer, nn.Sigmoid):
            net[i] = nn.ReLU()
        elif maximum and isinstance(layer, nn.AvgPool2d):
            net[i] = nn.MaxPool2d(kernel_size=2, stride=2)
    return net


cnnlab.MODELS["lenet-relu"] = partial(changed, True, False)
cnnlab.MODELS["lenet-max"] = partial(changed, False, True)
cnnlab.MODELS["lenet-relu-max"] = partial(changed, True, True)
recipe = result.run.recipe
tries = {name: cnnlab.train(recipe, model=name) for name in ("lenet-relu", "lenet-max", "lenet-relu-max")}
show.compare({"lenet": result, **tries, "lenet, Xavier": cnnlab.train(recipe, init="xavier-uniform")})

# %% tags=["solution"]
show.seeds("02_lenet", epoch=1)

# %% [markdown] lang="en" tags=["solution"]
# The activation: with ReLU most of the learning happens in the first epoch, with all three seeds (see the table above).
# With sigmoids the network is still at chance then, whatever the pooling and the initial weights. After fifteen epochs
# all are nearly equal. A sigmoid's slope is at most 1/4, and each layer weakens the gradient on its way back unless the
# weights make up for it; a ReLU's slope is 1 or 0.

# %% [markdown] lang="zh" tags=["solution"]
# 是激活函数：用 ReLU，第一个迭代周期就学会了大半，三个种子都是这样（见上表）。用 sigmoid，那时还停留在随机猜测的水平，与汇
# 聚方式和初始权重无关。十五个迭代周期之后，各个网络几乎一样好。sigmoid 的斜率最大只有 1/4，梯度每往回经过一层就减弱一次，
# 除非权重能弥补；ReLU 的斜率是 1 或 0。
