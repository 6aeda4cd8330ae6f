# %% [markdown] lang="en"
# # 1.1 AlexNet
#
# AlexNet (2012) is LeNet's plan on another scale: five convolutions instead of two, hundreds of channels instead of 16,
# and hundreds of times the weights. Three ideas made that trainable: *ReLU* in place of the sigmoid, so that gradients
# survive many layers; *dropout*, so that millions of weights do not learn the images by heart; and *augmentation*, which
# shows every image a little changed each time.
#
# The cells run on the handwritten digits that come with cnnlab. `DATA = "fashion-mnist"` takes the chapter's own images
# instead (30 MB, downloaded once): at most 6,000 of them, by the recipe's `limit`; 0 takes all.

# %% [markdown] lang="zh"
# # 1.1 AlexNet
#
# AlexNet（2012）是放大了许多的 LeNet：卷积层从两个变成五个，通道从 16 个变成几百个，权重多了几百倍。三个想法使它能够训练：用 **ReLU** 代替
# sigmoid，梯度才能穿过许多层；用**暂退法**（dropout），几百万个权重才不至于把图像背下来；用**增广**，每张图像每次出现都稍有不同。
#
# 下面的单元用 cnnlab 自带的手写数字运行。改成 `DATA = "fashion-mnist"`，就换成本章的图像（30 MB，只下载一次）：配方中的 `limit` 规定至多用
# 6,000 张，设为 0 则用全部。

# %%
import torch
from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show

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
# 教材中的网络，图像为 224 像素。

# %%
print(show.shapes("alexnet"))

# %% [markdown] lang="en"
# The manual says that the two hidden linear layers take nearly 1 GB. They do not:

# %% [markdown] lang="zh"
# 教材说，两个隐藏的线性层要占将近 1 GB。其实没有：

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
# 把 28 像素的图像放大到 224，计算量变成 64 倍，信息一点没多。这里训练 `alexnet-small`：层数相同，第一个窗口是 5x5、步幅为 1，通道更少。

# %%
recipe = cnnlab.RECIPES["fast/alexnet"].changed(
    data=DATA, limit=6000, image_size=28, batch_size=64, epochs=8, precision="float32"
)
result = cnnlab.train(recipe)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The manual's figure 1.1 shows the 96 filters of 11x11 pixels that AlexNet's first layer has learned: edges and colours.
# Here are those of the network above, and the maps that they make of one image. After so short a training most of them
# still look like noise; the maps show that they have found edges all the same. (For a figure like the manual's train
# `--recipe manual/alexnet`, on a GPU, then `cnnlab figures 1.1 --run RUN`.)

# %% [markdown] lang="zh"
# ## 看看里面
#
# 教材的图 1.1 是 AlexNet 第一层学到的 96 个 11x11 滤波器：边缘和颜色。下面是刚训练好的网络的滤波器，以及它们从一张图像得到的特征图。训练这么短，
# 大多数滤波器看上去还像噪声；但从特征图可以看出，它们已经在找边缘了。（要得到图 1.1 那样的图，先在 GPU 上用 `--recipe manual/alexnet` 训练，再运
# 行 `cnnlab figures 1.1 --run RUN`。）

# %%
show.filters(result)

# %%
show.maps(result, "1")

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## In full
#
# What the manual prints for Fashion-MNIST, and what cnnlab's committed runs reached; `fast/alexnet` is the small network
# above, trained on all images of 28 pixels.

# %% [markdown] lang="zh"
# ## 完整实验
#
# 教材给出的 Fashion-MNIST 结果，以及 cnnlab 已提交的运行结果；`fast/alexnet` 就是上面的小网络，在全部 28 像素的图像上训练。

# %%
show.results("lenet", "alexnet")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** Which layer of AlexNet holds the most weights, and which does the most work? `summarize` gives the table
# above as numbers.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** AlexNet 的哪一层权重最多，哪一层计算量最大？`summarize` 把上面的表以数值的形式给出。

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
# 第一个线性层占了全部权重的一半以上，处理一张图像时每个权重只用一次。卷积层在特征图的每个位置都要用到它的每个权重：权重少，计算多。

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** Train once more with augmentation: each image moved by up to two pixels (`shift=2`). Compare loss, training
# and validation accuracy of both, and say what augmentation changes.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 加上增广再训练一次：每张图像随机移动至多两个像素（`shift=2`）。比较两次的损失、训练精度和验证精度，说说增广改变了什么。

# %% tags=["answer"]

# %% tags=["solution"]
moved = cnnlab.train(recipe.changed(shift=2))
for name, trained in (("as they are", result), ("moved", moved)):
    s = trained.summary
    print(f"{name}: loss {s['loss']:.3f}, train acc {s['train_acc']:.3f}, val acc {s['val_acc']:.3f}")
show.compare({"as they are": result, "moved": moved})

# %% [markdown] lang="en" tags=["solution"]
# Training becomes harder: the loss is higher and the training accuracy lower, since images rarely come twice in the same
# place. Nothing of the kind happens to the validation images. Whether their accuracy rises depends on the data: where
# everything is centred, as here, being moved teaches little, and in few epochs it only slows learning.

# %% [markdown] lang="zh" tags=["solution"]
# 训练变难了：损失更高，训练精度更低，因为同一张图像很少两次出现在同一位置。验证图像则不移动。验证精度是否上升，取决于数据：像这里这样图像都已居
# 中，移动教不了多少东西，周期又少，就只会让学习变慢。
