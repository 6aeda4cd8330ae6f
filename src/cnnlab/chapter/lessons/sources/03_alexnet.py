# %% [markdown] lang="en"
# # 1.1 AlexNet
#
# AlexNet (2012) is LeNet on another scale: five convolutions instead of two, hundreds of channels instead of 16, and
# hundreds of times the weights. Three ideas made it trainable: *ReLU* instead of the sigmoid, so that gradients survive
# many layers; *dropout*, so that millions of weights do not memorize the images; and *augmentation*, which shows each
# image slightly changed every time.

# %% [markdown] lang="zh"
# # 1.1 AlexNet
#
# AlexNet（2012）是放大了许多的 LeNet：卷积层从两个变成五个，通道从 16 个变成几百个，权重多了几百倍。它之所以能训练，
# 靠的是三个想法：用 **ReLU** 代替 sigmoid，梯度才能穿过许多层；用**暂退法**（dropout），几百万个权重才不至于把图像背
# 下来；用**增广**，让每张图像每次出现时都稍有不同。

# %%
import torch
from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show

DATA = "digits"  # or "fashion-mnist": the chapter's own images, 30 MB, downloaded once
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
# The manual says that the two hidden linear layers need nearly 1 GB. They do not:

# %% [markdown] lang="zh"
# 教材说，两个隐藏的线性层要占将近 1 GB。其实没有这么多：

# %%
hidden = (6400 + 1) * 4096 + (4096 + 1) * 4096
print(f"{hidden:,} parameters of 4 bytes: {hidden * 4 / 1e6:.0f} MB")

# %% [markdown] lang="en"
# ## Training
#
# Enlarging images from 28 to 224 pixels makes the work 64 times larger and adds no information. So we train
# `alexnet-small`: the same layers with fewer channels, and a first window of 5x5 with stride 1.

# %% [markdown] lang="zh"
# ## 训练
#
# 把 28 像素的图像放大到 224，计算量变成 64 倍，信息一点没多。这里训练 `alexnet-small`：层数相同，通道更少，第一个窗口
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
# filters still look like noise, but the maps show that they already respond to edges. (For a figure like the manual's,
# train `--recipe manual/alexnet` on a GPU, then run `cnnlab figures 1.1 --run RUN`.)

# %% [markdown] lang="zh"
# ## 网络内部
#
# 教材的图 1.1 是 AlexNet 第一层学到的 96 个 11x11 滤波器：边缘和颜色。下面是刚训练好的网络的滤波器，以及它们从一张图
# 像得到的特征图。训练时间这么短，大多数滤波器看上去还像噪声；但从特征图可以看出，它们已经对边缘有反应了。（要得到图
# 1.1 那样的图，先在 GPU 上用 `--recipe manual/alexnet` 训练，再运行 `cnnlab figures 1.1 --run RUN`。）

# %%
show.filters(result)

# %%
show.maps(result, "1")

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## Full experiment
#
# The manual's results on Fashion-MNIST beside those of cnnlab's committed runs. `fast/alexnet` is the small network
# above, trained on all images at 28 pixels.

# %% [markdown] lang="zh"
# ## 完整实验
#
# 教材给出的 Fashion-MNIST 结果，以及随 cnnlab 提交的运行结果。`fast/alexnet` 就是上面的小网络，在全部 28 像素的图像上
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
# 第一个线性层占了全部权重的一半以上，处理一张图像时每个权重只用一次。卷积层在特征图的每个位置都要用到它的每个权重：权
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
# Training becomes harder: the loss is higher and the training accuracy lower, since an image rarely appears twice in
# the same position. The validation images are not shifted. Whether their accuracy rises depends on the data: here all
# images are centred, so shifting them teaches little, and within few epochs it only slows learning.

# %% [markdown] lang="zh" tags=["solution"]
# 训练变难了：损失更高，训练精度更低，因为同一张图像很少两次出现在同一位置。验证图像则不移动，它们的精度是否上升取决于
# 数据：这里的图像都已居中，移动教不了多少东西，周期又少，只会让学习变慢。
