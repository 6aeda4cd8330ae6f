# %% [markdown] lang="en"
# # 1.4 Batch normalisation
#
# While a network trains, what a layer gets as input changes in scale all the time, because the layers before it change.
# *Batch normalisation* (2015) puts each channel back to mean 0 and deviation 1, by the statistics of the batch, and then
# gives it a scale $\gamma$ and a shift $\beta$ that are learned:
#
# $$\mathrm{BN}(x) = \gamma\,\frac{x - \hat\mu}{\sqrt{\hat\sigma^2 + \epsilon}} + \beta$$
#
# In evaluation there may be no batch: running averages of mean and variance take its place.
#
# The cells run on the handwritten digits that come with cnnlab. For the chapter's own images write
# `DATA = "fashion-mnist"` (30 MB, downloaded once) and add `limit=6000` where it trains.

# %% [markdown] lang="zh"
# # 1.4 批量规范化
#
# 训练时，一层的输入的尺度一直在变，因为它前面的层在变。*批量规范化*（2015）按批量的统计量把每个通道变回均值 0、标准差 1，再乘上学习得到
# 的缩放 $\gamma$，加上偏移 $\beta$：
#
# $$\mathrm{BN}(x) = \gamma\,\frac{x - \hat\mu}{\sqrt{\hat\sigma^2 + \epsilon}} + \beta$$
#
# 评估时可能没有批量：用均值和方差的滑动平均代替。
#
# 以下单元用 cnnlab 自带的手写数字运行。要用本章的图像，写 `DATA = "fashion-mnist"`（30 MB，只下载一次），并在训练处加上 `limit=6000`。

# %%
import torch
from torch import nn

import cnnlab
from cnnlab.lessons import show
from cnnlab.models.batch_norm import BatchNorm

DATA = "digits"
torch.manual_seed(0)
x = 5 * torch.randn(8, 3, 4, 4) + 2
mean = x.mean((0, 2, 3), keepdim=True)
variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
by_hand = (x - mean) / (variance + 1e-5).sqrt()
for layer in (BatchNorm(3), nn.BatchNorm2d(3)):
    print(layer, torch.allclose(layer(x), by_hand, atol=1e-5))

# %% [markdown] lang="en"
# The manual calls the second line of its equation 1.2 a standard deviation. It is the variance; what is divided by is its
# root. Dividing by the variance itself would leave a deviation of 1/5 here.
#
# ## Shapes
#
# LeNet with batch normalisation before each sigmoid. As in the manual it has lost LeNet's padding: the two cannot be
# compared like for like.

# %% [markdown] lang="zh"
# 教材把式 1.2 的第二行叫作标准差。它是方差；除以的是它的平方根。如果除以方差本身，这里得到的标准差会是 1/5。
#
# ## 形状
#
# 在每个 sigmoid 之前加了批量规范化的 LeNet。与教材一样，它没有了 LeNet 的填充：两者不能直接相比。

# %%
print(show.shapes("lenet-bn"))

# %% [markdown] lang="en"
# ## Training
#
# The same recipe with a large step, without and with batch normalisation, and with ours in place of the framework's.

# %% [markdown] lang="zh"
# ## 训练
#
# 同一个步长很大的配方：没有批量规范化，有批量规范化，以及用我们自己的层代替框架的层。

# %%
recipe = cnnlab.RECIPES["digits"].changed(data=DATA, epochs=20)
trained = {model: cnnlab.train(recipe.changed(model=model)) for model in ("lenet", "lenet-bn", "lenet-bn-scratch")}
for model, result in trained.items():
    summary = result.summary
    print(f"{model}: loss {summary['loss']:.4f}, val acc {summary['val_acc']:.3f}, "
          f"{summary['images_per_second']:,.0f} images/s")  # fmt: skip

# %%
show.compare(trained)

# %% [markdown] lang="en"
# Ours and the framework's differ by rounding alone, which a training amplifies. LeNet without it may learn nothing at this
# step size: that larger steps work is the main use of batch normalisation.
#
# ## Looking inside
#
# The learned scale and shift of the first layer's channels, as the manual prints them; and what they make of one image.

# %% [markdown] lang="zh"
# 我们的层与框架的层只差舍入，而训练会放大舍入的差别。LeNet 单独用这个步长可能什么也学不到：能用更大的步长，正是批量规范化的主要用处。
#
# ## 看里面
#
# 第一层各通道学到的缩放和偏移，如教材所印；以及它们对一张图像的作用。

# %%
result = trained["lenet-bn"]
net = cnnlab.load_model(result.run, result.run.weights())
print("gamma", [round(v, 3) for v in net[1].weight.tolist()])
print("beta ", [round(v, 3) for v in net[1].bias.tolist()])
show.maps(result, "2")

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## In full
#
# Look at the deviation of the test accuracy over the seeds, and at how close the training figures are: after an epoch of
# large steps the running averages may fit the weights badly. A figure from one run says little here.

# %% [markdown] lang="zh"
# ## 完整的结果
#
# 注意测试精度在各种子之间的标准差，而训练的数字却很接近：步长大时，一个周期结束时的滑动平均可能与权重不相配。在这里，一次运行的数字说明不
# 了什么。

# %%
show.results("lenet", "lenet-bn-scratch", "lenet-bn")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** Let the trained network name one image in training mode, once beside 15 others and once beside 15 copies
# of itself. Then in evaluation mode. What do you see?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 让训练好的网络在训练模式下判断一张图像：一次与另外 15 张一起，一次与它自己的 15 个副本一起。再用评估模式。看到了什么？

# %% tags=["answer"]
from cnnlab.data.loader import Preprocessing

images = cnnlab.load_images(DATA, "train").images[:16]
x = Preprocessing.from_dict(result.run.info["preprocessing"])(images)

# %% tags=["solution"]
for mode in ("train", "eval"):
    net.train(mode == "train")
    with torch.no_grad():
        beside_others, beside_itself = net(x)[0], net(x[:1].repeat(16, 1, 1, 1))[0]
    print(f"{mode}: the logits differ by up to {(beside_others - beside_itself).abs().max():.4f}")

# %% [markdown] lang="en" tags=["solution"]
# In training mode an image's answer depends on the images beside it. The manual's source predicts its submission in that
# mode. (Each such pass also moved the running averages of this network.)

# %% [markdown] lang="zh" tags=["solution"]
# 训练模式下，一张图像的答案取决于旁边的图像。教材所依据的代码正是在这种模式下预测提交结果的。（每次这样的前向计算还改动了网络的滑动平均。）

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** Which $\gamma$ and $\beta$ make batch normalisation leave its input as it is? Check.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 怎样的 $\gamma$ 和 $\beta$ 使批量规范化不改变输入？检验。

# %% tags=["answer"]

# %% tags=["solution"]
x = 5 * torch.randn(8, 3, 4, 4) + 2
layer = BatchNorm(3)
layer.gamma.data = (x.var((0, 2, 3), unbiased=False) + layer.eps).sqrt()
layer.beta.data = x.mean((0, 2, 3))
print(torch.allclose(layer(x), x, atol=1e-4))

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 3.** The batch's variance divides by $n$, the running variance by $n - 1$. By how much do they differ after a
# linear layer for batches of 256, and of 4? What happens with a batch of one?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 3.** 批量的方差除以 $n$，滑动方差除以 $n - 1$。在线性层之后，批量为 256 和 4 时两者差多少？批量为 1 时会怎样？

# %% tags=["answer"]

# %% tags=["solution"]
for n in (256, 4):
    print(f"{n}: {n / (n - 1) - 1:.1%}")
try:
    nn.BatchNorm1d(120)(torch.rand(1, 120))
except ValueError as error:
    print(error)
