# %% [markdown] lang="en"
# # Before the chapter: LeNet
#
# LeNet (1998) learns its features together with the classifier. A *convolution* slides a small window over the image
# and computes the same weighted sum at each place: few weights, and what is found in one corner is found in any other.
# *Pooling* then makes the map coarser, so that small shifts matter less. Two rounds of this, then three linear layers.
#
# The cells run on the handwritten digits that come with cnnlab. `DATA = "fashion-mnist"` takes the chapter's own images
# instead (30 MB, downloaded once): at most 6,000 of them, by the recipe's `limit`; 0 takes all.

# %% [markdown] lang="zh"
# # 本章之前：LeNet
#
# LeNet（1998）把特征和分类器一起学出来。**卷积**让一个小窗口滑过图像，在每个位置做同样的加权求和：权重很少，而且在一个角落能认出的东西，在别的
# 角落也能认出。**汇聚**再把特征图变粗，使小的平移不那么要紧。这样做两轮，后面接三个线性层。
#
# 下面的单元用 cnnlab 自带的手写数字运行。改成 `DATA = "fashion-mnist"`，就换成本章的图像（30 MB，只下载一次）：配方中的 `limit` 规定至多用
# 6,000 张，设为 0 则用全部。

# %%
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
# *Multiply-adds* are the work for one image; the *receptive field* is the side of the square of input pixels on which a
# single value depends. Most of the work is in the convolutions, most of the weights are in the linear layers.

# %% [markdown] lang="zh"
# ## 形状
#
# **multiply-adds**（乘加次数）是处理一张图像的计算量；**receptive field**（感受野）是一个输出值所依赖的那块输入像素的边长。计算量大多在卷积层，
# 权重大多在线性层。

# %%
print(show.shapes("lenet"))

# %% [markdown] lang="en"
# ## Training
#
# A recipe is all that decides a training, as data; `changed` gives another one. A part of the training images is held
# out, and measured after each epoch: the dashed line. Sigmoids start slowly: at first little happens.

# %% [markdown] lang="zh"
# ## 训练
#
# 配方（recipe）用数据写下决定一次训练的一切；`changed` 给出修改后的新配方。一部分训练图像留作验证，每个迭代周期之后测一次：即图中的虚线。
# sigmoid 起步很慢：一开始几乎没有进展。

# %%
recipe = cnnlab.RECIPES["fast/lenet"].changed(data=DATA, limit=6000, image_size=28, batch_size=32, epochs=15)
result = cnnlab.train(recipe)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The six learned windows of the first layer; the maps that they make of one image; and the images that the network finds
# hardest, with `true → predicted` above a mistake, else the probability that the true class was given.

# %% [markdown] lang="zh"
# ## 看看里面
#
# 第一层学到的六个窗口；它们从一张图像得到的特征图；以及网络觉得最难的图像：判错的，上方写着“真实 → 预测”，判对的，写着真实类别得到的概率。

# %%
show.filters(result)

# %%
show.maps(result, "0")

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## In full
#
# The manual's recipe on all of Fashion-MNIST: plain SGD for ten epochs. The printed figures are of one run without a
# seed; ours are mean ± deviation over seeds. Below them our own recipe for the same network.

# %% [markdown] lang="zh"
# ## 完整实验
#
# 教材的配方，用在整个 Fashion-MNIST 上：普通的 SGD，十个周期。书上的数字来自一次没有固定种子的运行；我们的是多个种子的均值 ± 标准差。再下一
# 行是我们自己的配方，网络相同。

# %%
show.results("lenet")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** Reckon by hand how many parameters the second convolution and the first linear layer have. Check.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 先手算第二个卷积层和第一个线性层各有多少参数，再用代码验证。

# %% tags=["answer"]

# %% tags=["solution"]
lenet = cnnlab.build_model("lenet")
for layer, reckoned in ((lenet[3], 16 * (6 * 5 * 5 + 1)), (lenet[7], 120 * (16 * 5 * 5 + 1))):
    print(layer, reckoned, sum(p.numel() for p in layer.parameters()))

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** Replace each sigmoid by a ReLU and average pooling by maximum pooling, and compare. A network of your
# own is a function of `num_classes`, `in_channels` and `image_size`; under a name in `cnnlab.MODELS` it can be trained
# like any other. Take the same recipe.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 把每个 sigmoid 换成 ReLU，把平均汇聚换成最大汇聚，与原来的比较。自己的网络写成一个函数，参数是 `num_classes`、`in_channels` 和
# `image_size`；在 `cnnlab.MODELS` 里给它起个名字，就能像其他网络一样训练。配方不变。

# %% tags=["answer"]

# %% tags=["solution"]


def lenet_relu(*, num_classes=10, in_channels=1, image_size=28):
    net = cnnlab.build_model("lenet", num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    for i, layer in enumerate(net):
        if isinstance(layer, nn.Sigmoid):
            net[i] = nn.ReLU()
        elif isinstance(layer, nn.AvgPool2d):
            net[i] = nn.MaxPool2d(kernel_size=2, stride=2)
    return net


cnnlab.MODELS["lenet-relu"] = lenet_relu
other = cnnlab.train(recipe.changed(model="lenet-relu"))
show.compare({"sigmoid, average": result, "ReLU, maximum": other})

# %% [markdown] lang="en" tags=["solution"]
# The slope of a sigmoid is at most 1/4, so each layer weakens the gradient that passes back through it; that of a ReLU
# is 1 or 0. Watch how soon each curve leaves the ground: the ReLU's is nearly at the top when the other starts.

# %% [markdown] lang="zh" tags=["solution"]
# sigmoid 的斜率至多为 1/4，梯度每往回经过一层就减弱一次；ReLU 的斜率是 1 或 0。注意每条曲线多早离开底部：另一条刚刚起步时，ReLU 的那条已经快到
# 顶了。
