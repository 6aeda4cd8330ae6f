# %% [markdown] lang="en"
# # 1.2 VGG: blocks
#
# AlexNet says nothing about how to design the next network. VGG (2014) does: repeat one *block*, some convolutions of 3x3
# that keep the side, then a pooling that halves it. Deeper networks come from more convolutions in a block; a list of
# numbers describes each.
#
# Why 3x3? Two of them in a row see 5x5 pixels, with fewer weights than one of 5x5, and with a ReLU more.
#
# The cells run on the handwritten digits that come with cnnlab. For the chapter's own images write
# `DATA = "fashion-mnist"` (30 MB, downloaded once) and add `limit=6000` where it trains.

# %% [markdown] lang="zh"
# # 1.2 VGG：使用块
#
# AlexNet 没有告诉人们怎样设计下一个网络。VGG（2014）告诉了：重复同一种*块*，即若干个保持边长的 3x3 卷积，再加一个把边长减半的汇聚。块里
# 的卷积多一些，网络就深一些；一串数字就描述了整个网络。
#
# 为什么是 3x3？两个连在一起看到 5x5 的像素，权重比一个 5x5 少，还多一个 ReLU。
#
# 以下单元用 cnnlab 自带的手写数字运行。要用本章的图像，写 `DATA = "fashion-mnist"`（30 MB，只下载一次），并在训练处加上 `limit=6000`。

# %%
from functools import partial

from torch import nn

import cnnlab
from cnnlab.lessons import show
from cnnlab.models.vgg import VGG11, vgg, vgg_block

DATA = "digits"
two = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
one = nn.Sequential(nn.Conv2d(64, 64, 5, padding=2))
for net in (two, one):
    print(show.shapes(net, image_size=56, in_channels=64), end="\n\n")

# %% [markdown] lang="en"
# ## Shapes
#
# A block, and VGG-11: eight convolutions in five blocks, and three linear layers.

# %% [markdown] lang="zh"
# ## 形状
#
# 一个块，以及 VGG-11：五个块中共八个卷积层，再加三个线性层。

# %%
print(vgg_block(2, 128, 256))
print(VGG11)
print(show.shapes("vgg11"))

# %% [markdown] lang="en"
# ## Training
#
# The manual divides all channels by four and enlarges the images to 224 pixels. `vgg11-small` takes images of 32 pixels,
# which five halvings bring down to 1, and a smaller head.

# %% [markdown] lang="zh"
# ## 训练
#
# 教材把所有通道数除以四，并把图像放大到 224 像素。`vgg11-small` 用 32 像素的图像，减半五次正好剩 1，头部也更小。

# %%
recipe = cnnlab.RECIPES["fast/vgg11"].changed(data=DATA, batch_size=64, epochs=10, precision="float32")
result = cnnlab.train(recipe)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The same image after the first, the second and the third block: the maps become smaller, and what they show less like
# the image.

# %% [markdown] lang="zh"
# ## 看里面
#
# 同一张图像经过第一、第二、第三个块之后：特征图越来越小，也越来越不像原图。

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

# %% [markdown] lang="zh"
# ## 完整的结果

# %%
show.results("alexnet", "vgg11")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** VGG-16 is ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)). Where does its name come from? Count on the
# network.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** VGG-16 是 ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))。名字里的 16 从哪里来？在网络上数一数。

# %% tags=["answer"]

# %% tags=["solution"]
layers = list(cnnlab.build_model("vgg16", image_size=32).modules())
print(sum(isinstance(m, nn.Conv2d) for m in layers), "+", sum(isinstance(m, nn.Linear) for m in layers))

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** How much more work is VGG-11 at 224 pixels than at 32? And how many more weights? Where are they?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** VGG-11 在 224 像素时的计算量是 32 像素时的多少倍？权重呢？多在哪里？

# %% tags=["answer"]

# %% tags=["solution"]
from cnnlab.inspect.summary import summarize

large, small = summarize("vgg11", image_size=224), summarize("vgg11", image_size=32)
print(f"work {large.multiply_adds / small.multiply_adds:.1f}, weights {large.parameters / small.parameters:.1f}")
print(max(large.layers, key=lambda layer: layer.parameters))

# %% [markdown] lang="en" tags=["solution"]
# The convolutions do (224/32)² = 49 times the work with the same weights; the whole ratio is a little lower, as two of
# the linear layers do not grow. All additional weights are in the first linear layer, which takes 49 times the inputs.

# %% [markdown] lang="zh" tags=["solution"]
# 卷积层用同样的权重做 (224/32)² = 49 倍的计算；总的比值略低，因为有两个线性层没有变大。多出来的权重全在第一个线性层，它的输入是 49 倍。

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 3.** Design a VGG of your own with at most a tenth of the weights of `vgg11-small`, and train it by the same
# recipe. How much accuracy does that cost?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 3.** 设计一个你自己的 VGG，权重至多是 `vgg11-small` 的十分之一，用同样的配方训练。精度损失多少？

# %% tags=["answer"]

# %% tags=["solution"]
cnnlab.MODELS["vgg-mine"] = partial(vgg, ((1, 16), (1, 32), (2, 48)), hidden=64, image_size=32)
mine = cnnlab.train(recipe.changed(model="vgg-mine"))
for name, trained in (("vgg11-small", result), ("vgg-mine", mine)):
    print(f"{name}: {trained.summary['parameters']:,} parameters, val acc {trained.summary['val_acc']:.3f}")
show.compare({"vgg11-small": result, "vgg-mine": mine})
