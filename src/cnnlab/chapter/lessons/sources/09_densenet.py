# %% [markdown] lang="en"
# # After ResNet: DenseNet
#
# ResNet adds a layer's result to its input. DenseNet (2017) concatenates them: each layer of a *dense block* sees the
# block's input and the results of all layers before it, and adds a few channels of its own, the *growth rate*. Nothing
# is overwritten, so each layer can be narrow. Within a block the side stays and the channels grow. Between the blocks a
# *transition* halves the channels, which would otherwise keep growing, and the side, as pooling does elsewhere.

# %% [markdown] lang="zh"
# # ResNet 之后：稠密连接网络（DenseNet）
#
# ResNet 把一层的结果加到输入上，DenseNet（2017）则把两者连结起来：**稠密块**中的每一层都能看到块的输入和前面各层的全
# 部结果，自己再添上几个通道，通道数就是**增长率**。什么都不会被覆盖，所以每一层可以很窄。在块内，边长不变，通道越来越多。块与
# 块之间的**过渡层**把通道数减半，否则通道会一直增加下去；它也把边长减半，作用与别处的汇聚层相同。

# %%
import torch

import cnnlab
from cnnlab.chapter.lessons import show
from cnnlab.models.densenet import DenseBlock, densenet, transition

DATA = "digits"  # or "fashion-mnist": the chapter's own images, 30 MB, downloaded once
x = torch.rand(4, 3, 8, 8)
block = DenseBlock(2, in_channels=3, growth=10)
y = block(x)
print(tuple(x.shape), "->", tuple(y.shape), "->", tuple(transition(23, 10, bias=True)(y).shape))
print("the input is still there:", torch.equal(y[:, :3], x))

# %% [markdown] lang="en"
# ## Shapes
#
# A stem, then dense blocks and transitions in turn: the number of channels grows, then is halved.

# %% [markdown] lang="zh"
# ## 形状
#
# 先是起始层，然后稠密块与过渡层交替：通道数增长，再减半。

# %%
print(show.shapes("densenet"))

# %% [markdown] lang="en"
# ## Training
#
# The network of the d2l book, unchanged, on images of 32 pixels instead of 96: a ninth of the work.

# %% [markdown] lang="zh"
# ## 训练
#
# 就是 d2l 原书所用的网络，图像用 32 像素而不是 96：计算量是九分之一。

# %%
settings = {"image_size": 32, "shift": 0, "learning_rate": 0.02, "batch_size": 32, "epochs": 4}
result = cnnlab.train("digits", data=DATA, limit=6000, model="densenet", **settings)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# Seven maps of the stem for one image, which the first block passes on unchanged; then seven of the maps that the
# block's first layer adds, and seven of its last layer.

# %% [markdown] lang="zh"
# ## 网络内部
#
# 起始层从一张图像得到的七张特征图，第一个块会原样保留它们；然后是这个块的第一层和最后一层各自添上的特征图，也各取七张。

# %%
show.maps(result, "0", "1.layers.0", "1.layers.3", count=7)

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## Results on Fashion-MNIST
#
# A row marked as limited cannot be compared with the printed one. `fast/densenet` is the network above on all images at
# 32 pixels.

# %% [markdown] lang="zh"
# ## 在 Fashion-MNIST 上的结果
#
# 注明了限制条件的行不能与书上的数字相比。`fast/densenet` 就是上面的网络，在全部图像上以 32 像素训练。

# %%
show.results("resnet18", "densenet")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** Four blocks of four layers with growth rate 32, starting from 64 channels: write down the channels
# after each block and each transition, and compare with the table.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 四个块，每块四层，增长率 32，从 64 个通道开始：写出每个块和每个过渡层之后的通道数，与上表比较。

# %% tags=["answer"]

# %% tags=["solution"]
channels = [64]
for i in range(4):
    channels.append(channels[-1] + 4 * 32)
    if i < 3:
        channels.append(channels[-1] // 2)
print(channels)

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** Train with a growth rate of 8 instead of 32. How many parameters are left, and what does it cost?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 把增长率从 32 改为 8，再训练一次。还剩多少参数，代价是什么？

# %% tags=["answer"]

# %% tags=["solution"]


def narrow(**sizes):
    return densenet((4, 4, 4, 4), growth=8, **sizes)


cnnlab.MODELS["densenet-narrow"] = narrow
other = cnnlab.train(result.run.recipe, model="densenet-narrow")
for name, trained in (("growth 32", result), ("growth 8", other)):
    print(f"{name}: {trained.summary['parameters']:,} parameters, val acc {trained.summary['val_acc']:.3f}")
show.compare({"growth 32": result, "growth 8": other})

# %% [markdown] lang="en" tags=["solution"]
# A ninth of the parameters is left. Each training is a single run, and a difference of a few thousandths means nothing:
# repeat both with `seed=1` and `seed=2`.

# %% [markdown] lang="zh" tags=["solution"]
# 只剩下九分之一的参数。这两次训练各只运行了一次，相差千分之几说明不了什么：请用 `seed=1` 和 `seed=2` 各重复一次。

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 3.** Training stores the input of each convolution for the backward pass. Count the input channels of all
# convolutions of a dense block that starts from 64 channels, and those of two residual blocks of 64 channels (also four
# convolutions).

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 3.** 训练时，每个卷积的输入都要为反向传播保存下来。数一数：从 64 个通道开始的一个稠密块，各个卷积的输入一共有
# 多少通道？两个 64 通道的残差块（也是四个卷积）又有多少？

# %% tags=["answer"]

# %% tags=["solution"]
dense = [layer[2].in_channels for layer in DenseBlock(4, in_channels=64, growth=32).layers]
print("dense:", dense, sum(dense), "residual:", [64] * 4, 4 * 64)

# %% [markdown] lang="en" tags=["solution"]
# Dense blocks save weights but need much memory: each layer's input contains all earlier results once more. Other
# implementations share that memory or compute the concatenations again in the backward pass.

# %% [markdown] lang="zh" tags=["solution"]
# 稠密块省权重，费内存：每一层的输入都把前面的全部结果又存一遍。别的实现会共用这些内存，或在反向传播时重新连结。
