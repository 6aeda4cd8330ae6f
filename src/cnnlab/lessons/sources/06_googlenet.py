# %% [markdown] lang="en"
# # After NiN: GoogLeNet
#
# Which window is best, 1x1, 3x3 or 5x5? GoogLeNet (2014) does not choose. An *Inception* block runs four paths side by
# side over the same input, with different windows, and joins what they find along the channels. In two of them a 1x1
# convolution first brings the number of channels down, or the larger windows would cost too much.
#
# The cells run on the handwritten digits that come with cnnlab. For the chapter's own images write
# `DATA = "fashion-mnist"` (30 MB, downloaded once) and add `limit=6000` where it trains.

# %% [markdown] lang="zh"
# # NiN 之后：GoogLeNet
#
# 1x1、3x3、5x5，哪种窗口最好？GoogLeNet（2014）不做选择。*Inception* 块让四条窗口不同的路径并列处理同一个输入，再把结果沿通道拼起来。其
# 中两条路径先用 1x1 卷积减少通道，否则大窗口太贵。
#
# 以下单元用 cnnlab 自带的手写数字运行。要用本章的图像，写 `DATA = "fashion-mnist"`（30 MB，只下载一次），并在训练处加上 `limit=6000`。

# %%
import torch
from torch import nn

import cnnlab
from cnnlab.lessons import show
from cnnlab.models.googlenet import Inception

DATA = "digits"
block = Inception(192, 64, (96, 128), (16, 32), 32)
x = torch.rand(1, 192, 12, 12)
for path in (block.path1, block.path2, block.path3, block.path4):
    print(tuple(path(x).shape))
print("joined:", tuple(block(x).shape))

# %% [markdown] lang="en"
# ## Shapes

# %% [markdown] lang="zh"
# ## 形状

# %%
print(show.shapes("googlenet"))

# %% [markdown] lang="en"
# ## Training
#
# `googlenet-small` has half the channels, and batch normalisation (the next lesson) after each convolution: without it
# the network stays for hundreds of steps where it began.

# %% [markdown] lang="zh"
# ## 训练
#
# `googlenet-small` 的通道减半，并在每个卷积之后加了批量规范化（下一课）：没有它，网络在前几百步里停在原处。

# %%
recipe = cnnlab.RECIPES["digits"].changed(
    data=DATA, model="googlenet-small", learning_rate=0.05, batch_size=32, epochs=6
)
result = cnnlab.train(recipe)
print(result)

# %% [markdown] lang="en"
# ## Looking inside
#
# The stem's maps of one image, and those of the four paths of the first block.

# %% [markdown] lang="zh"
# ## 看里面
#
# 主干对一张图像的特征图，以及第一个块中四条路径各自的特征图。

# %%
show.maps(result, "0")

# %%
show.maps(result, "2.0.path1", count=7)

# %%
show.maps(result, "2.0.path2", count=7)

# %%
show.maps(result, "2.0.path3", count=7)

# %%
show.maps(result, "2.0.path4", count=7)

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## In full
#
# The manual's source trains GoogLeNet at 96 pixels without batch normalisation. A row that says how it was limited cannot
# be compared with the printed one: it ends while the network still stands where it began.

# %% [markdown] lang="zh"
# ## 完整的结果
#
# 教材所依据的代码在 96 像素上训练，不用批量规范化。注明了限制的行不能与书上的数字相比：它结束时网络还停在原处。

# %%
show.results("nin", "googlenet")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** What would the 5x5 path of the block above cost without its 1x1 convolution? Compare multiply-adds and
# parameters.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 上面那个块的 5x5 路径如果没有 1x1 卷积，要花多少？比较乘加次数和参数量。

# %% tags=["answer"]

# %% tags=["solution"]
direct = nn.Sequential(nn.Conv2d(192, 32, kernel_size=5, padding=2), nn.ReLU())
for net in (block.path3, direct):
    print(show.shapes(net, image_size=12, in_channels=192), end="\n\n")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** How large is the receptive field of each path, in pixels of the block's input? And after two such blocks
# in a row?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 每条路径的感受野有多大（以块的输入像素计）？连续两个这样的块之后呢？

# %% tags=["answer"]

# %% tags=["solution"]
from cnnlab.inspect.summary import summarize

for name in ("path1", "path2", "path3", "path4"):
    print(name, summarize(block.get_submodule(name), image_size=12, in_channels=192).receptive_field)
both = nn.Sequential(block, Inception(256, 128, (128, 192), (32, 96), 64))
print("two blocks:", summarize(both, image_size=12, in_channels=192).receptive_field)

# %% [markdown] lang="en" tags=["solution"]
# The widest path counts: 5 pixels after one block, 9 after two. The outputs of the 1x1 path see one pixel each; the block
# that follows mixes them with those that see more.

# %% [markdown] lang="zh" tags=["solution"]
# 以最宽的路径为准：一个块之后 5 像素，两个之后 9 像素。1x1 路径的每个输出只看到一个像素；下一个块把它们与看得更多的输出混合起来。
