# %% [markdown] lang="en"
# # 1.5 ResNet: blocks that add
#
# A deeper network should be at least as good as a shallow one: its additional layers could simply pass on their input.
# But that is hard to learn, so deeper networks often end up worse. A *residual block* (2015) makes it easy. It computes
# $g(x) = f(x) + x$: where the layers $f$ have nothing to contribute, they only need to output 0. On the way back, the
# gradient has a path that no layer weakens.

# %% [markdown] lang="zh"
# # 1.5 ResNet：做加法的块
#
# 更深的网络至少应该一样好：多出来的层只要把输入原样传下去就行。可是这件事很难学，所以更深的网络训练出来常常更
# 差。**残差块**（2015）把它变容易了：它计算 $g(x) = f(x) + x$，如果 $f$ 没有什么可贡献，输出 0 就行。反向传播时，梯度
# 有一条不会被任何层减弱的路。

# %%
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show
from cnnlab.models.resnet import Residual

DATA = "digits"  # or "fashion-mnist": the chapter's own images, 30 MB, downloaded once


def gradient(depth, shortcut):
    """Return the norm of the gradient at the input of `depth` layers."""
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
# Without shortcuts almost no gradient is left after thirty layers. With them it even grows; the batch normalisation in
# each block keeps that in check.
#
# ## Shapes
#
# The manual's two demonstrations: a block that keeps the shape, and one that halves the side and doubles the channels.
# The shortcut of the second one needs a 1x1 convolution, since different shapes cannot be added.

# %% [markdown] lang="zh"
# 没有捷径，过了三十层几乎什么也传不到。有捷径时梯度反而变大；每个块里的批量规范化会约束它。
#
# ## 形状
#
# 教材的两个演示：一个保持形状的块，一个把边长减半、通道加倍的块。后者的捷径需要一个 1x1 卷积，因为形状不同就无法相
# 加。

# %%
x = torch.rand(4, 3, 6, 6)
print(tuple(Residual(3, 3, manual=True)(x).shape), tuple(Residual(3, 6, stride=2, manual=True)(x).shape))
print(show.shapes("resnet18-manual"))

# %% [markdown] lang="en"
# ## Training
#
# `resnet18-small` starts with a 3x3 convolution of stride 1, and has a quarter of the channels.

# %% [markdown] lang="zh"
# ## 训练
#
# `resnet18-small` 的第一层是步幅为 1 的 3x3 卷积，通道数是四分之一。

# %%
settings = {"data": DATA, "limit": 6000, "shift": 0, "learning_rate": 0.02, "batch_size": 32}
result = cnnlab.train("digits", model="resnet18-small", epochs=4, **settings)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The first layer's filters; then the maps of one image after the stem, the first module and the second module.

# %% [markdown] lang="zh"
# ## 网络内部
#
# 第一层的滤波器；然后是一张图像经过主干、第一个模块和第二个模块之后的特征图。

# %%
show.filters(result)

# %%
show.maps(result, "0", "1", "2")

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## Full experiment
#
# In the printed row the training accuracy is almost 1 and the test accuracy far below: the network has memorized its
# 60,000 images. A row marked as limited cannot be compared with it. `fast/resnet18` is the small network above on all
# images at 28 pixels.

# %% [markdown] lang="zh"
# ## 完整实验
#
# 书上那一行的训练精度几乎是 1，测试精度却低得多：网络把 60,000 张图像背了下来。注明了限制条件的行不能与它相
# 比。`fast/resnet18` 就是上面的小网络，在全部 28 像素的图像上训练。

# %%
show.results("lenet-bn", "resnet18")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** Stack 4 and 16 residual blocks of 16 channels, with and without their shortcuts, and train them on
# images of 16 pixels. Look at the *training* accuracy: is the deeper network worse because it memorizes its images?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 把 4 个和 16 个 16 通道的残差块连成一串，分别保留和去掉捷径，在 16 像素的图像上训练。看看**训练**精度：
# 更深的网络更差，是因为把图像背下来了吗？

# %% tags=["answer"]

# %% tags=["solution"]


class Plain(Residual):
    """A residual block without its shortcut."""

    def forward(self, x):
        """Return what the block would add to its input."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def chain(block, count, *, num_classes=10, in_channels=1, image_size=16):
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, kernel_size=3, stride=2, padding=1),
        *[block(16, 16) for _ in range(count)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


trained = {}
for block in (Plain, Residual):
    for count in (4, 16):
        name = f"{block.__name__.lower()}-{count}"
        cnnlab.MODELS[name] = partial(chain, block, count)
        trained[name] = cnnlab.train("digits", model=name, image_size=16, epochs=6, **settings)
for name, other in trained.items():
    print(f"{name}: train acc {other.summary['train_acc']:.3f}, val acc {other.summary['val_acc']:.3f}")
show.compare(trained)

# %% [markdown] lang="en" tags=["solution"]
# No: without shortcuts the deep network is worse on its training images too. It cannot even learn what the shallow one
# learns. With shortcuts, depth does no such harm.

# %% [markdown] lang="zh" tags=["solution"]
# 不是：没有捷径的深网络在训练图像上也更差。浅网络学得会的，它都学不会。有了捷径，深度就不再有这种害处。

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** Where do the names ResNet-18, 34, 50, 101 and 152 come from? Count the layers with weights, except
# those on the shortcuts.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** ResNet-18、34、50、101、152 这些名字从哪里来？数一数带权重的层，捷径上的不算。

# %% tags=["answer"]

# %% tags=["solution"]
for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
    with torch.device("meta"):  # shapes only, no values
        net = cnnlab.build_model(name)
    weighted = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
    print(name, len(weighted))

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 3.** The manual's ResNet-18 has biases in its convolutions and no batch normalisation on the shortcuts; in
# the paper's, `resnet18`, it is the other way round. Which has more parameters, and how many more?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 3.** 教材的 ResNet-18，卷积有偏置，捷径上没有批量规范化；论文的（`resnet18`）正好相反。哪个参数多，多多少？

# %% tags=["answer"]

# %% tags=["solution"]
counts = {n: sum(p.numel() for p in cnnlab.build_model(n).parameters()) for n in ("resnet18-manual", "resnet18")}
print(counts, counts["resnet18-manual"] - counts["resnet18"])

# %% [markdown] lang="en" tags=["solution"]
# The manual's: its biases outnumber the scales and shifts of the paper's three additional normalisation layers. A bias
# before a batch normalisation has no effect: subtracting the mean removes it.

# %% [markdown] lang="zh" tags=["solution"]
# 教材的多：它的偏置，比论文多出的三个规范化层的缩放和偏移加起来还多。批量规范化之前的偏置没有用处：减去均值时，它也一
# 起被减掉了。
