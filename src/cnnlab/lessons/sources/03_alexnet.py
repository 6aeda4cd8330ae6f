# %% [markdown] lang="en"
# # 1.1 AlexNet
#
# AlexNet (2012) is LeNet's plan on another scale: five convolutions instead of two, hundreds of channels instead of 16,
# and hundreds of times the weights. Three ideas made that trainable: *ReLU* in place of the sigmoid, so that gradients
# survive many layers; *dropout*, so that millions of weights do not learn the images by heart; and *augmentation*, which
# shows every image a little changed each time.
#
# The cells run on the handwritten digits that come with cnnlab. For the chapter's own images write
# `DATA = "fashion-mnist"` (30 MB, downloaded once) and add `limit=6000` where it trains.

# %% [markdown] lang="zh"
# # 1.1 AlexNet
#
# AlexNet（2012）是放大了的 LeNet：五个卷积层而不是两个，几百个通道而不是 16 个，权重是几百倍。三个想法使它能够训练：用 *ReLU* 代替
# sigmoid，梯度才能穿过许多层；*暂退法*（dropout），几百万个权重才不至于把图像背下来；*增广*，让每张图像每次都以稍微不同的样子出现。
#
# 以下单元用 cnnlab 自带的手写数字运行。要用本章的图像，写 `DATA = "fashion-mnist"`（30 MB，只下载一次），并在训练处加上 `limit=6000`。

# %%
import torch
from torch import nn

import cnnlab
from cnnlab.lessons import show

DATA = "digits"
for activation in (nn.Sigmoid(), nn.ReLU()):
    x = torch.full((1,), 2.0, requires_grad=True)
    y = x
    for _ in range(8):
        y = activation(y)
    y.backward()
    print(f"{activation}: the gradient after 8 layers is {x.grad.item():.7f}")

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
# 教材上的网络，图像为 224 像素。

# %%
print(show.shapes("alexnet"))

# %% [markdown] lang="en"
# The manual says that the two hidden linear layers take nearly 1 GB. They do not:

# %% [markdown] lang="zh"
# 教材说两个隐藏的线性层占将近 1 GB。并不是：

# %%
hidden = (6400 + 1) * 4096 + (4096 + 1) * 4096
print(f"{hidden:,} parameters of 4 bytes: {hidden * 4 / 1e6:.0f} MB")

# %% [markdown] lang="en"
# ## Training
#
# Enlarging images of 28 pixels to 224 costs 64 times the work and adds no information. Here `alexnet-small` trains: the
# same layers, with a first window of 5x5 without stride, and fewer channels.

# %% [markdown] lang="zh"
# ## 训练
#
# 把 28 像素的图像放大到 224，计算量是 64 倍，信息一点没多。这里训练 `alexnet-small`：层相同，第一个窗口是 5x5、步幅为 1，通道更少。

# %%
recipe = cnnlab.RECIPES["fast/alexnet"].changed(data=DATA, image_size=28, batch_size=64, epochs=8, precision="float32")
result = cnnlab.train(recipe)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The manual's figure 1.1 shows the 96 filters of 11x11 pixels that AlexNet's first layer has learned: edges and colours.
# Here are those of the network above, and what they make of one image. (For the figure itself train
# `--recipe manual/alexnet`, on a GPU, then `cnnlab figures 1.1 --run RUN`.)

# %% [markdown] lang="zh"
# ## 看里面
#
# 教材的图 1.1 是 AlexNet 第一层学到的 96 个 11x11 滤波器：边缘和颜色。下面是上面这个网络的滤波器，以及它们对一张图像的响应。（要得到图
# 1.1 本身，在 GPU 上用 `--recipe manual/alexnet` 训练，再运行 `cnnlab figures 1.1 --run RUN`。）

# %%
show.filters(result)

# %%
show.maps(result, "1")

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## In full
#
# What the manual prints for Fashion-MNIST, and what was run here.

# %% [markdown] lang="zh"
# ## 完整的结果
#
# 教材在 Fashion-MNIST 上的数字，以及这里运行过的结果。

# %%
show.results("lenet", "alexnet")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** Which layer of AlexNet holds the most weights, and which does the most work? `summarize` gives the table
# above as numbers.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** AlexNet 的哪一层权重最多，哪一层计算最多？`summarize` 以数字给出上面的表。

# %% tags=["answer"]
from cnnlab.inspect.summary import summarize

# %% tags=["solution"]
layers = summarize("alexnet").layers
print("weights:", max(layers, key=lambda layer: layer.parameters))
print("work:   ", max(layers, key=lambda layer: layer.multiply_adds))

# %% [markdown] lang="en" tags=["solution"]
# The first linear layer holds more than half of all weights, and each is used once for an image. A convolution uses each
# of its weights at every place of the map: few weights, much work.

# %% [markdown] lang="zh" tags=["solution"]
# 第一个线性层占了全部权重的一半以上，每个权重对一张图像只用一次。卷积层在特征图的每个位置都用到它的每个权重：权重少，计算多。

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** Train once more with augmentation: each image moved by up to two pixels (`shift=2`). Compare training and
# validation accuracy of both, and say what augmentation changes.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 加上增广再训练一次：每张图像随机移动至多两个像素（`shift=2`）。比较两次的训练精度和验证精度，说说增广改变了什么。

# %% tags=["answer"]

# %% tags=["solution"]
moved = cnnlab.train(recipe.changed(shift=2))
for name, trained in (("as they are", result), ("moved", moved)):
    print(f"{name}: train acc {trained.summary['train_acc']:.3f}, val acc {trained.summary['val_acc']:.3f}")
show.compare({"as they are": result, "moved": moved})

# %% [markdown] lang="en" tags=["solution"]
# Training becomes harder: the network never sees the same image twice, so its training accuracy is of images that are
# new to it, too. The gap between the two figures closes. Whether validation accuracy rises in so few epochs depends on
# the data; with more epochs and fewer images augmentation gains most.

# %% [markdown] lang="zh" tags=["solution"]
# 训练变难了：网络不会两次看到同一张图像，它的训练精度也是在没见过的图像上的。两个数字之间的差距缩小。在这么少的周期里验证精度是否上升，取决于
# 数据；周期越多、图像越少，增广的好处越大。
