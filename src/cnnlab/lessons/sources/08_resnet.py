# %% [markdown] lang="en"
# # 1.5 ResNet: blocks that add
#
# A deeper network should be at least as good: its new layers could simply hand on their input. Trained, it is often
# worse, since that is hard to learn. A *residual block* (2015) makes it easy. It computes $g(x) = f(x) + x$: where the
# layers $f$ have nothing to contribute, it is enough that they give 0. On the way back the gradient has a path that no
# layer weakens.
#
# The cells run on the handwritten digits that come with cnnlab. For the chapter's own images write
# `DATA = "fashion-mnist"` (30 MB, downloaded once) and add `limit=6000` where it trains.

# %% [markdown] lang="zh"
# # 1.5 ResNet：做加法的块
#
# 更深的网络至少应该一样好：新加的层只要把输入原样传下去就行。训练出来却常常更差，因为这件事很难学。*残差块*（2015）让它变得容易：它计算
# $g(x) = f(x) + x$，当层 $f$ 没有什么可贡献时，只要给出 0。往回传时，梯度有一条不被任何层减弱的路。
#
# 以下单元用 cnnlab 自带的手写数字运行。要用本章的图像，写 `DATA = "fashion-mnist"`（30 MB，只下载一次），并在训练处加上 `limit=6000`。

# %%
import torch
import torch.nn.functional as F
from torch import nn

import cnnlab
from cnnlab.lessons import show
from cnnlab.models.resnet import Residual, resnet

DATA = "digits"


def gradient(depth, shortcut):
    """Norm of the gradient that arrives before `depth` layers."""
    torch.manual_seed(0)
    x = torch.randn(16, 64, requires_grad=True)
    y = x
    for _ in range(depth):
        f = torch.relu(nn.Linear(64, 64)(y))
        y = f + y if shortcut else f
    y.mean().backward()
    return x.grad.norm().item()


for depth in (1, 10, 30):
    print(f"{depth:2d} layers: {gradient(depth, False):.1e} without shortcuts, {gradient(depth, True):.1e} with")

# %% [markdown] lang="en"
# ## Shapes
#
# The manual's two demonstrations: a block that keeps the shape, and one that halves the side and doubles the channels. Its
# shortcut needs a 1x1 convolution, or the two could not be added.

# %% [markdown] lang="zh"
# ## 形状
#
# 教材的两个演示：一个保持形状的块，一个把边长减半、通道加倍的块。后者的捷径需要一个 1x1 卷积，否则两者不能相加。

# %%
x = torch.rand(4, 3, 6, 6)
print(tuple(Residual(3, 3, manual=True)(x).shape), tuple(Residual(3, 6, stride=2, manual=True)(x).shape))
print(show.shapes("resnet18-manual"))

# %% [markdown] lang="en"
# ## Training
#
# `resnet18-small` has a first layer of 3x3 without stride, and a quarter of the channels.

# %% [markdown] lang="zh"
# ## 训练
#
# `resnet18-small` 的第一层是步幅为 1 的 3x3 卷积，通道是四分之一。

# %%
recipe = cnnlab.RECIPES["digits"].changed(
    data=DATA, model="resnet18-small", learning_rate=0.05, batch_size=32, epochs=5
)
result = cnnlab.train(recipe)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The first layer's filters; then one image after the stem, and after the first and the second module.

# %% [markdown] lang="zh"
# ## 看里面
#
# 第一层的滤波器；然后是一张图像经过主干、第一个和第二个模块之后的样子。

# %%
show.filters(result)

# %%
show.maps(result, "0")

# %%
show.maps(result, "1")

# %%
show.maps(result, "2")

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## In full
#
# The printed row has a training accuracy of almost 1 and a test accuracy far below: the network knows its 60,000 images
# by heart. A row that says how it was limited cannot be compared with it.

# %% [markdown] lang="zh"
# ## 完整的结果
#
# 书上那一行的训练精度几乎是 1，测试精度低得多：网络把 60,000 张图像背了下来。注明了限制的行不能与它相比。

# %%
show.results("lenet-bn", "resnet18")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** Build the same network without shortcuts, train it by the same recipe, and compare. (`resnet` takes a class
# of blocks.)

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 搭一个没有捷径的同样的网络，用同样的配方训练，做比较。（`resnet` 接受一个块的类。）

# %% tags=["answer"]

# %% tags=["solution"]


class Plain(Residual):
    """A residual block without what makes it one."""

    def forward(self, x):
        """What the block would have added to its input."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def plain18(**sizes):
    net = resnet((2, 2, 2, 2), Plain, cifar=True, ratio=4, **sizes)
    for block in net.modules():
        if isinstance(block, Plain):
            block.shortcut = nn.Identity()  # it would have weights that are never used
    return net


cnnlab.MODELS["plain18"] = plain18
plain = cnnlab.train(recipe.changed(model="plain18"))
show.compare({"with shortcuts": result, "without": plain})

# %% [markdown] lang="en" tags=["solution"]
# With 18 layers and batch normalisation the plain network trains, too. The difference grows with depth: in the paper 34
# plain layers are worse than 18, 34 layers with shortcuts are better.

# %% [markdown] lang="zh" tags=["solution"]
# 只有 18 层、又有批量规范化时，没有捷径的网络也能训练。差别随深度增大：论文中，没有捷径的 34 层不如 18 层，有捷径的 34 层更好。

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** Where do the names ResNet-18, 34, 50, 101 and 152 come from? Count the weighted layers, those of the
# shortcuts left out.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** ResNet-18、34、50、101、152 的名字从哪里来？数一数带权重的层，不算捷径上的。

# %% tags=["answer"]

# %% tags=["solution"]
for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
    with torch.device("meta"):  # shapes without numbers
        net = cnnlab.build_model(name)
    weighted = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
    print(name, len(weighted))

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 3.** The manual's ResNet-18 has biases in its convolutions and no batch normalisation on the shortcut; the
# paper's, `resnet18`, is the other way round. Which of the two has more parameters, and by how many?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 3.** 教材的 ResNet-18 卷积有偏置，捷径上没有批量规范化；论文的（`resnet18`）正相反。哪个参数多，多多少？

# %% tags=["answer"]

# %% tags=["solution"]
counts = {n: sum(p.numel() for p in cnnlab.build_model(n).parameters()) for n in ("resnet18-manual", "resnet18")}
print(counts, counts["resnet18-manual"] - counts["resnet18"])

# %% [markdown] lang="en" tags=["solution"]
# The manual's: its biases are more than the scales and shifts of the paper's three additional norms. Before a batch
# normalisation they are of no use: it subtracts the mean, and the bias with it.

# %% [markdown] lang="zh" tags=["solution"]
# 教材的多：它的偏置比论文多出的三个规范化层的缩放和偏移还多。在批量规范化之前的偏置没有用处：减去均值时，偏置也一起减掉了。
