# %% [markdown] lang="en"
# # 1.5 ResNet: blocks that add
#
# A deeper network should be at least as good as a shallow one: its additional layers could simply pass on their input.
# Yet from some depth on, deeper plain networks end up worse, on their training images too. This is called *degradation*
# (exercise 1). A *residual block* (2015) computes $f(x) = g(x) + x$: its layers learn only the difference
# $g(x) = f(x) - x$ between the desired mapping $f$ and the input. Where the input should pass unchanged, they only need
# to output 0.
#
# ## Not a matter of vanishing gradients
#
# It is often said that shortcuts cure vanishing gradients. In a network without batch normalisation, whether gradients
# vanish depends on the initial weights. Here is the norm of the gradient at the input of 1, 10 and 30 layers with ReLU
# and no shortcuts.

# %% [markdown] lang="zh"
# # 1.5 残差网络（ResNet）
#
# 更深的网络至少应该与浅的一样好：多出来的层只要把输入原样传下去就行。可是深到一定程度以后，没有跨层连接的网络反而变差，而
# 且在训练图像上也变差，这叫作**退化**（degradation，见练习 1）。**残差块**（2015）计算 $f(x) = g(x) + x$：块里的层只需
# 学习希望得到的映射 $f$ 与输入之差 $g(x) = f(x) - x$。如果输入应当原样通过，它们只要输出 0 就行。
#
# ## 问题不在梯度消失
#
# 常有人说，跨层连接解决的是梯度消失。在没有批量规范化的网络里，梯度是否消失取决于初始权重：下面是没有跨层连接、使用 ReLU 的网
# 络（1、10、30 层），在输入处的梯度范数。

# %%
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show
from cnnlab.models.resnet import Residual
from cnnlab.training.optim import initialize

DATA = "digits"  # or "fashion-mnist": the chapter's own images, 30 MB, downloaded once


def gradient(depth, scheme):
    """Return the norm of the gradient at the input of `depth` layers, relative to that at their output."""
    torch.manual_seed(0)
    layers = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(depth)])
    initialize(layers, scheme)
    x = torch.randn(16, 64, requires_grad=True)
    y = layers(x)
    towards = torch.randn_like(y)
    (y * towards).sum().backward()
    return (x.grad.norm() / towards.norm()).item()


for depth in (1, 10, 30):
    norms = [f"{gradient(depth, scheme):.1e} ({scheme})" for scheme in ("pytorch", "xavier-uniform", "he-normal")]
    print(f"{depth:2d} layers:", ", ".join(norms))

# %% [markdown] lang="en"
# PyTorch's default weights are too small for so many ReLUs: almost nothing of the gradient is left after thirty layers.
# He initialisation gives a layer with n inputs weights of variance 2/n, six times PyTorch's default: a ReLU stops half
# of the signal, and this makes up for it, so the gradient keeps its size. The authors of ResNet checked that the
# gradients of their plain networks, which have batch normalisation, do not vanish. So they consider vanishing gradients
# an unlikely cause of degradation (section 4.1 of their paper), and only conjecture another one: that plain deep
# networks converge very slowly. The cause is still debated. The effect is easy to see: exercise 1.
#
# ## Shapes
#
# The manual's two demonstrations: a block that keeps the shape, and one that halves the side and doubles the channels.
# The shortcut of the second one needs a 1x1 convolution, since different shapes cannot be added.

# %% [markdown] lang="zh"
# PyTorch 的默认权重对这么多 ReLU 来说太小：过了三十层，梯度几乎消失。有 n 个输入时，He 初始化的权重方差是 2/n，
# 为 PyTorch 默认值的六倍：ReLU 会挡掉一半信号，这样正好补上，梯度于是保持大小。ResNet 的作者检查过，他们不带跨层连接的网络有批
# 量规范化，梯度并没有消失。所以他们认为，退化不太可能是梯度消失造成的（论文 4.1 节），只是猜测没有跨层连接的深网络收敛极慢。真正的原因至今仍有讨论，现象却很容易看到：见练习 1。
#
# ## 形状
#
# 教材的两个演示：一个保持形状的块，一个把边长减半、通道加倍的块。后者的跨层连接需要一个 1x1 卷积，因为形状不同就无法相
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
# 第一层的卷积核；然后是一张图像经过起始层、第一个模块和第二个模块之后的特征图。

# %%
show.filters(result)

# %%
show.maps(result, "0", "1", "2")

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## Results on Fashion-MNIST
#
# In the printed row the training accuracy is almost 1 and the test accuracy far below: the network overfits its 60,000
# images. A row marked as limited cannot be compared with it. `fast/resnet18` is the small network above on all
# images at 28 pixels.

# %% [markdown] lang="zh"
# ## 在 Fashion-MNIST 上的结果
#
# 书上那一行的训练精度几乎是 1，测试精度却低得多：网络对 60,000 张训练图像过拟合了。注明了限制条件的行不能与它相
# 比。`fast/resnet18` 就是上面的小网络，在全部 28 像素的图像上训练。

# %%
show.results("lenet-bn", "resnet18")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** Stack 4 and 16 residual blocks of 16 channels, with and without their shortcuts, and train them on
# images of 16 pixels, from He's weights. Plot the *training* accuracy: is the deeper network worse because it overfits?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 把 4 个和 16 个 16 通道的残差块连成一串，分别保留和去掉跨层连接，用 He 初始化，在 16 像素的图像上训练。画
# 出**训练**精度：更深的网络更差，是因为过拟合吗？

# %% tags=["answer"]

# %% tags=["solution"]


class Plain(Residual):
    """A residual block without its shortcut."""

    def forward(self, x):
        """Return ReLU of the block's layers alone: where a residual block adds its input, nothing is added."""
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
        trained[name] = cnnlab.train("digits", model=name, image_size=16, init="he-normal", epochs=6, **settings)
accuracies = {name: [row["train_acc"] for row in other.history] for name, other in trained.items()}
show.plot(range(1, 1 + len(accuracies["plain-4"])), accuracies, "epoch", "training accuracy")

# %% tags=["solution"]
show.seeds("08_resnet", "train_acc")

# %% [markdown] lang="en" tags=["solution"]
# No: without shortcuts the deep network is worse on its training images too. It does not even learn what the shallow one
# learns in the same time. With shortcuts, 16 blocks do as well as 4. Both have the same initial weights and batch
# normalisation, so neither explains the difference. The table has the training accuracy of the last epoch, measured
# with three seeds.

# %% [markdown] lang="zh" tags=["solution"]
# 不是：没有跨层连接的深网络在训练图像上也更差，用同样的时间，连浅网络学得会的都没学会。有了跨层连接，16 个块与 4 个块一样好。两种
# 网络的初始权重相同，也都有批量规范化，所以差别不能归因于这两者。表中是三个种子下最后一个迭代周期的训练精度。

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** Where do the names ResNet-18, 34, 50, 101 and 152 come from? Count the layers with weights, except
# those on the shortcuts.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** ResNet-18、34、50、101、152 这些名字从哪里来？数一数带权重的层，跨层连接上的不算。

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
# **练习 3.** 教材的 ResNet-18，卷积有偏置，跨层连接上没有批量规范化；论文的（`resnet18`）正好相反。哪个参数多，多多少？

# %% tags=["answer"]

# %% tags=["solution"]
counts = {n: sum(p.numel() for p in cnnlab.build_model(n).parameters()) for n in ("resnet18-manual", "resnet18")}
print(counts, counts["resnet18-manual"] - counts["resnet18"])

# %% [markdown] lang="en" tags=["solution"]
# The manual's: its biases outnumber the scales and shifts of the paper's three additional normalisation layers. A bias
# before a batch normalisation has no effect: subtracting the mean removes it.

# %% [markdown] lang="zh" tags=["solution"]
# 教材的多：它的偏置，比论文多出的三个规范化层的拉伸参数和偏移参数加起来还多。批量规范化之前的偏置没有用处：减去均值时，
# 它也一起被减掉了。
