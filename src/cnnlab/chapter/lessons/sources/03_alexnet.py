# %% [markdown] lang="en"
# # 1.1 AlexNet
#
# AlexNet (2012) is LeNet on another scale: five convolutions instead of two, hundreds of channels instead of 16, and
# hundreds of times the weights. Three ideas made it work: *ReLU* instead of sigmoid or tanh, which trains several times
# faster according to the paper; and, against overfitting, *dropout* and *augmentation*, which changes each image
# slightly every time it is used.
#
# A sigmoid's slope is at most 1/4, a ReLU's is 1 or 0. What this does to gradients depends on the weights between the
# activations: here are eight layers of 64 units with weights of several sizes.

# %% [markdown] lang="zh"
# # 1.1 深度卷积神经网络（AlexNet）
#
# AlexNet（2012）是放大了许多的 LeNet：卷积层从两个变成五个，通道从 16 个变成几百个，权重多了几百倍。它靠的是三个想法：
# 用 **ReLU** 代替 sigmoid 或 tanh，论文说训练快了几倍；用**暂退法**（dropout），以及让每张图像每次出现时都稍有不
# 同的**图像增广**，两者都用来减轻过拟合。
#
# sigmoid 的斜率最大只有 1/4，ReLU 的斜率是 1 或 0。梯度会怎样，还要看激活函数之间的权重：下面是八层、每层 64 个单元的网
# 络，权重有几种大小。

# %%
import torch
from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show

DATA = "digits"  # or "fashion-mnist": the chapter's own images, 30 MB, downloaded once


def gradient(activation, gain):
    """Return the norm of the gradient at the input of eight layers, relative to that at their output."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(64, 64), activation) for _ in range(8)]
    for linear, _ in layers:
        nn.init.xavier_uniform_(linear.weight, gain)
    x = torch.randn(16, 64, requires_grad=True)
    y = nn.Sequential(*layers)(x)
    towards = torch.randn_like(y)
    (y * towards).sum().backward()
    return (x.grad.norm() / towards.norm()).item()


for activation in (nn.Sigmoid(), nn.ReLU()):
    for gain in (1, 2**0.5, 4):
        print(f"{activation}, Xavier's weights times {gain:.1f}: {gradient(activation, gain):.1e}")

# %% [markdown] lang="en"
# With suitable weights, Xavier's times √2 (He's), ReLU preserves the size of the gradient. The sigmoid would need
# weights at least four times as large as Xavier's, and then many units would be in its flat part.
#
# Dropout sets half of the values to 0 at random in training and doubles the others; in evaluation it does nothing.

# %% [markdown] lang="zh"
# 用适合 ReLU 的权重，即 Xavier 的 √2 倍（He 初始化），梯度保持大小。sigmoid 至少需要四倍于 Xavier 的权重，但那时许多单元又
# 落在它平坦的地方。
#
# 暂退法在训练时随机把一半的值置为 0，其余加倍；评估时不起作用。

# %%
dropout, ones = nn.Dropout(p=0.5), torch.ones(8)
torch.manual_seed(0)
print("training:  ", dropout.train()(ones).tolist())
print("evaluation:", dropout.eval()(ones).tolist())

# %% [markdown] lang="en"
# ## Shapes
#
# The network as the manual prints it, for images of 224 pixels.

# %% [markdown] lang="zh"
# ## 形状
#
# 教材中的网络，图像为 224 像素。

# %%
print(show.shapes("alexnet"))

# %% [markdown] lang="en"
# The manual says that the two hidden linear layers need nearly 1 GB. They do not:

# %% [markdown] lang="zh"
# 教材说，两个隐藏的全连接层要占将近 1 GB。其实没有这么多：

# %%
hidden = (6400 + 1) * 4096 + (4096 + 1) * 4096
print(f"{hidden:,} parameters of 4 bytes: {hidden * 4 / 1e6:.0f} MB")

# %% [markdown] lang="en"
# ## Training
#
# Enlarging images from 28 to 224 pixels makes the work of a convolution 64 times larger and adds no information. So we
# train `alexnet-small`: the same layers with fewer channels, and a first window of 5x5 with stride 1.

# %% [markdown] lang="zh"
# ## 训练
#
# 把 28 像素的图像放大到 224，卷积层的计算量变成 64 倍，信息一点没多。这里训练 `alexnet-small`：层数相同，通道更少，第一个窗口
# 是 5x5、步幅为 1。

# %%
result = cnnlab.train(
    "fast/alexnet", data=DATA, limit=6000, image_size=28, batch_size=64, epochs=8, precision="float32"
)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The manual's figure 1.1 shows the 96 learned filters of 11x11 pixels in AlexNet's first layer: edges and colours. Here
# are the filters of the network above, and the maps that they compute from one image. After so short a training most
# filters still look like noise. Edges in their maps do not prove that they have learned anything: the maps of random
# filters show edges, too. The last two rows are such maps, from before any training. (For a figure like the manual's,
# train `--recipe manual/alexnet` on a GPU, then run `cnnlab figures 1.1 --run RUN`.)

# %% [markdown] lang="zh"
# ## 网络内部
#
# 教材的图 1.1 是 AlexNet 第一层学到的 96 个 11x11 卷积核：边缘和颜色。下面是刚训练好的网络的卷积核，以及它们从一张图
# 像得到的特征图。训练时间这么短，大多数卷积核看上去还像噪声。特征图里能看到边缘，并不说明学到了什么：随机的卷积核也有这样
# 的特征图，最后两行就是训练之前的。（要得到图 1.1 那样的图，先在 GPU 上用 `--recipe manual/alexnet` 训练，再运行 `cnnlab figures 1.1 --run RUN`。）

# %%
show.filters(result)

# %%
show.maps(result, "1")

# %%
torch.manual_seed(0)
untrained = cnnlab.build_model("alexnet-small", image_size=28)
image, _ = show.held_out(result, 1)
with torch.no_grad():
    maps = untrained[:2](image)[0, :15]
show.grid([image[0], *maps], ["untrained", *map(str, range(15))])

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## Results on Fashion-MNIST
#
# The manual's results on Fashion-MNIST beside those of cnnlab's committed runs. `fast/alexnet` is the small network
# above, trained on all images at 28 pixels.

# %% [markdown] lang="zh"
# ## 在 Fashion-MNIST 上的结果
#
# 教材给出的 Fashion-MNIST 结果，与 cnnlab 仓库中保存的结果并列。`fast/alexnet` 就是上面的小网络，在全部 28 像素的图像上
# 训练。

# %%
show.results("lenet", "alexnet")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** Which layer of AlexNet has the most weights, and which does the most work? `summarize` returns the
# table above as numbers.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** AlexNet 的哪一层权重最多，哪一层计算量最大？`summarize` 以数值形式返回上面的表。

# %% tags=["answer"]
from cnnlab.inspect.summary import summarize

# %% tags=["solution"]
layers = summarize("alexnet").layers
print("weights:", max(layers, key=lambda layer: layer.parameters))
print("work:   ", max(layers, key=lambda layer: layer.multiply_adds))

# %% [markdown] lang="en" tags=["solution"]
# The first linear layer has more than half of all weights, and uses each of them once per image. A convolution uses
# each of its weights at every position of the map: few weights, much work.

# %% [markdown] lang="zh" tags=["solution"]
# 第一个全连接层占了全部权重的一半以上，处理一张图像时每个权重只用一次。卷积层在特征图的每个位置都要用到它的每个权重：权
# 重少，计算多。

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** Train again with augmentation: shift each image by up to two pixels (`shift=2`). Compare the loss and
# the training and validation accuracy of both runs. What does augmentation change?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 加上增广再训练一次：每张图像随机移动最多两个像素（`shift=2`）。比较两次的损失、训练精度和验证精度，说说
# 增广改变了什么。

# %% tags=["answer"]

# %% tags=["solution"]
shifted = cnnlab.train(result.run.recipe, shift=2)
for name, trained in (("without", result), ("shift=2", shifted)):
    s = trained.summary
    print(f"{name}: loss {s['loss']:.3f}, train acc {s['train_acc']:.3f}, val acc {s['val_acc']:.3f}")
show.compare({"without": result, "shift=2": shifted})

# %% [markdown] lang="en" tags=["solution"]
# Training becomes harder: an image rarely appears twice in the same position, so the network cannot memorize it. The
# validation images are not shifted. Whether their accuracy rises depends on the data: here all images are centred, so
# shifts cannot be expected to teach much. A difference of a few thousandths between two runs means nothing; repeat both
# with `seed=1` and `seed=2`.

# %% [markdown] lang="zh" tags=["solution"]
# 训练变难了：同一张图像很少两次出现在同一位置，网络没法死记。验证图像则不移动，它们的精度是否上升取决于数据：这里的图像都
# 已居中，不能指望移动教会网络多少东西。两次运行相差千分之几说明不了什么：请用 `seed=1` 和 `seed=2` 各重复一次。
