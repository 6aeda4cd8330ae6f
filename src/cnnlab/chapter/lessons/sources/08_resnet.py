# %% [markdown] lang="en"
# # 1.5 ResNet: blocks that add
#
# A deeper network should be at least as good: its new layers could simply hand on their input. Trained, it is often
# worse, since that is hard to learn. A *residual block* (2015) makes it easy. It computes $g(x) = f(x) + x$: where the
# layers $f$ have nothing to contribute, it is enough that they give 0. On the way back the gradient has a path that no
# layer weakens.
#
# The cells run on the handwritten digits that come with cnnlab. `DATA = "fashion-mnist"` takes the chapter's own images
# instead (30 MB, downloaded once): at most 6,000 of them, by the recipe's `limit`; 0 takes all.

# %% [markdown] lang="zh"
# # 1.5 ResNet：做加法的块
#
# 更深的网络至少应该一样好：新加的层只要把输入原样传下去就行。可训练出来常常更差，因为这件事很难学。**残差块**（2015）让它变得容易：它计算
# $g(x) = f(x) + x$，当 $f$ 这些层没有什么可贡献时，只要给出 0。反向传播时，梯度有一条不会被任何层减弱的路。
#
# 下面的单元用 cnnlab 自带的手写数字运行。改成 `DATA = "fashion-mnist"`，就换成本章的图像（30 MB，只下载一次）：配方中的 `limit` 规定至多用
# 6,000 张，设为 0 则用全部。

# %%
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show
from cnnlab.models.resnet import Residual

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
# Without shortcuts next to nothing arrives after thirty layers. With them it even grows; the batch normalisation in each
# block keeps that in bounds.
#
# ## Shapes
#
# The manual's two demonstrations: a block that keeps the shape, and one that halves the side and doubles the channels. Its
# shortcut needs a 1x1 convolution, or the two could not be added.

# %% [markdown] lang="zh"
# 没有捷径，过了三十层几乎什么也传不到。有捷径时梯度反而变大；每个块里的批量规范化会约束它。
#
# ## 形状
#
# 教材的两个演示：一个保持形状的块，一个把边长减半、通道加倍的块。后者的捷径需要一个 1x1 卷积，否则两者无法相加。

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
# `resnet18-small` 的第一层是步幅为 1 的 3x3 卷积，通道数是四分之一。

# %%
recipe = cnnlab.RECIPES["digits"].changed(
    data=DATA, limit=6000, model="resnet18-small", shift=0, learning_rate=0.02, batch_size=32, epochs=4
)
result = cnnlab.train(recipe)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The first layer's filters; then the maps of one image after the stem, and after the first and the second module.

# %% [markdown] lang="zh"
# ## 看看里面
#
# 第一层的滤波器；然后是一张图像经过主干、第一个模块和第二个模块之后的特征图。

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
# by heart. A row that says how it was limited cannot be compared with it. `fast/resnet18` is the small network above on
# all images of 28 pixels.

# %% [markdown] lang="zh"
# ## 完整实验
#
# 书上那一行的训练精度几乎是 1，测试精度却低得多：网络把 60,000 张图像背了下来。注明了限制条件的行不能与它相比。`fast/resnet18` 就是上面的小网
# 络，在全部 28 像素的图像上训练。

# %%
show.results("lenet-bn", "resnet18")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** Put 4 and 16 residual blocks of 16 channels in a row, with and without their shortcuts, and train them on
# images of 16 pixels. Look at the *training* accuracy: is the deeper network worse because it learns its images by heart?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 把 4 个和 16 个 16 通道的残差块连成一串，分别保留和去掉捷径，在 16 像素的图像上训练。看看**训练**精度：更深的网络更差，是因为把图像背
# 下来了吗？

# %% tags=["answer"]

# %% tags=["solution"]


class Plain(Residual):
    """A residual block without what makes it one."""

    def forward(self, x):
        """What the block would have added to its input."""
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
        trained[name] = cnnlab.train(recipe.changed(model=name, image_size=16, epochs=6))
for name, other in trained.items():
    print(f"{name}: train acc {other.summary['train_acc']:.3f}, val acc {other.summary['val_acc']:.3f}")
show.compare(trained)

# %% [markdown] lang="en" tags=["solution"]
# No: the deep network without shortcuts is worse on its training images, too. It cannot even learn what the shallow one
# learns. With shortcuts depth does no such harm.

# %% [markdown] lang="zh" tags=["solution"]
# 不是：没有捷径的深网络在训练图像上也更差。浅网络学得会的，它都学不会。有了捷径，深度就不再有这种害处。

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** Where do the names ResNet-18, 34, 50, 101 and 152 come from? Count the weighted layers, those of the
# shortcuts left out.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** ResNet-18、34、50、101、152 这些名字从哪里来？数一数带权重的层，捷径上的不算。

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
# **练习 3.** 教材的 ResNet-18，卷积有偏置，捷径上没有批量规范化；论文的（`resnet18`）正好相反。哪个参数多，多多少？

# %% tags=["answer"]

# %% tags=["solution"]
counts = {n: sum(p.numel() for p in cnnlab.build_model(n).parameters()) for n in ("resnet18-manual", "resnet18")}
print(counts, counts["resnet18-manual"] - counts["resnet18"])

# %% [markdown] lang="en" tags=["solution"]
# The manual's: its biases are more than the scales and shifts of the paper's three additional norms. Before a batch
# normalisation they are of no use: it subtracts the mean, and the bias with it.

# %% [markdown] lang="zh" tags=["solution"]
# 教材的多：它的偏置，比论文多出的三个规范化层的缩放和偏移加起来还多。批量规范化之前的偏置没有用处：减去均值时，它也一起被减掉了。
