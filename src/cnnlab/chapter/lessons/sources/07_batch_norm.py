# %% [markdown] lang="en"
# # 1.4 Batch normalisation
#
# While a network trains, the scale of each layer's input keeps changing, because the layers before it change. *Batch
# normalisation* (2015) normalises each channel to mean 0 and standard deviation 1 with the statistics of the batch,
# then applies a learned scale $\gamma$ and shift $\beta$:
#
# $$\mathrm{BN}(x) = \gamma\,\frac{x - \hat\mu}{\sqrt{\hat\sigma^2 + \epsilon}} + \beta$$
#
# In evaluation there may be no batch, so running averages of mean and variance are used instead.

# %% [markdown] lang="zh"
# # 1.4 批量规范化
#
# 训练时，每一层输入的尺度一直在变，因为前面的层在变。**批量规范化**（2015）用当前批量的统计量把每个通道规范成均值 0、
# 标准差 1，再乘以学到的缩放 $\gamma$，加上学到的偏移 $\beta$：
#
# $$\mathrm{BN}(x) = \gamma\,\frac{x - \hat\mu}{\sqrt{\hat\sigma^2 + \epsilon}} + \beta$$
#
# 评估时可能没有批量，就用均值和方差的移动平均代替。

# %%
import torch
from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show
from cnnlab.models.batch_norm import BatchNorm

DATA = "digits"  # or "fashion-mnist": the chapter's own images, 30 MB, downloaded once
torch.manual_seed(0)
x = 5 * torch.randn(8, 3, 4, 4) + 2
mean = x.mean((0, 2, 3), keepdim=True)
variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
by_hand = (x - mean) / (variance + 1e-5).sqrt()
for layer in (BatchNorm(3), nn.BatchNorm2d(3)):
    print(layer, torch.allclose(layer(x), by_hand, atol=1e-5))

# %% [markdown] lang="en"
# The manual calls the second line of its equation 1.2 a standard deviation. It is the variance; the denominator is its
# square root. Dividing by the variance itself would give a standard deviation of 1/5 here.
#
# ## Shapes
#
# LeNet with batch normalisation before each sigmoid. As in the manual, it lacks LeNet's padding, so this is not a
# controlled comparison.

# %% [markdown] lang="zh"
# 教材把式 1.2 的第二行叫作标准差。其实它是方差，分母是它的平方根。如果除以方差本身，这里得到的标准差会是 1/5。
#
# ## 形状
#
# 在每个 sigmoid 之前加了批量规范化的 LeNet。与教材一样，它去掉了 LeNet 的填充：两者不是严格的对照。

# %%
print(show.shapes("lenet-bn"))

# %% [markdown] lang="en"
# What does it do? Before any training, how much do the images of a batch differ at the input of each sigmoid? First
# LeNet without batch normalisation, then with it.

# %% [markdown] lang="zh"
# 它起什么作用？下面看训练之前，同一批量中的各张图像传到每个 sigmoid 时还相差多少：先是没有批量规范化的 LeNet，再是有
# 它的 LeNet。

# %%
images = cnnlab.load_images(DATA, "train").images[:64]
x = nn.functional.interpolate(images / 255, size=28)
for name in ("lenet", "lenet-bn"):
    y, differences = x, []
    for layer in cnnlab.build_model(name):
        if isinstance(layer, nn.Sigmoid):
            differences.append(f"{y.std(0).mean().item():.4f}")
        y = layer(y)
    print(name, differences)

# %% [markdown] lang="en"
# Without it, the images are nearly identical by the last sigmoid, so the output hardly depends on them. With it, each
# sigmoid gets values around 0, where it is steepest, and they differ as much as at the start.
#
# ## Training
#
# The same recipe without and with batch normalisation, and with our own layer instead of PyTorch's.

# %% [markdown] lang="zh"
# 没有它，各张图像到最后一个 sigmoid 时已经几乎一样，输出也就很难取决于图像。有了它，每个 sigmoid 得到的值都在 0 附
# 近，那里最陡，而且差异和一开始一样大。
#
# ## 训练
#
# 同一个配方：没有批量规范化，有批量规范化，以及用我们自己的层代替 PyTorch 的层。

# %%
networks = ("lenet", "lenet-bn", "lenet-bn-scratch")
trained = {name: cnnlab.train("digits", model=name, data=DATA, limit=6000, epochs=15) for name in networks}
for model, result in trained.items():
    s = result.summary
    print(f"{model}: loss {s['loss']:.4f}, val acc {s['val_acc']:.3f}, {s['images_per_second']:,.0f} images/s")

# %%
show.compare(trained)

# %% [markdown] lang="en"
# Our layer and PyTorch's differ only by rounding: one line hides the other. LeNet without batch normalisation needs
# many more steps to get better than chance, if it ever does (exercise 1).
#
# ## Looking inside
#
# The learned scale and shift of the first layer's channels, as the manual prints them; and the maps after its sigmoid.

# %% [markdown] lang="zh"
# 我们的层与 PyTorch 的层只有舍入上的差别：两条曲线重合在一起。没有批量规范化的 LeNet，要走出随机猜测的水平，需要的步
# 数远不止这些（练习 1）。
#
# ## 网络内部
#
# 像教材那样，打印第一层各通道学到的缩放和偏移；再看第一个 sigmoid 之后的特征图。

# %%
result = trained["lenet-bn"]
net = cnnlab.load_model(result.run).network
print("gamma", [round(v, 3) for v in net[1].weight.tolist()])
print("beta ", [round(v, 3) for v in net[1].bias.tolist()])
show.maps(result, "2")

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## Full experiment
#
# The manual's recipe on all of Fashion-MNIST. The test accuracy varies a lot between seeds, while the training figures
# hardly do: after large steps the running averages may not fit the weights. A figure from a single run says little
# here. `fast/lenet-bn` ends with small steps.

# %% [markdown] lang="zh"
# ## 完整实验
#
# 教材的配方，用在整个 Fashion-MNIST 上。各个种子的测试精度相差很大，训练的数字却很接近：步长大时，移动平均可能跟不上
# 权重。所以单次运行的数字说明不了什么。`fast/lenet-bn` 在结尾用小步长。

# %%
show.results("lenet", "lenet-bn-scratch", "lenet-bn")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** Is it the step size? Train LeNet without batch normalisation for the same number of epochs at a tenth
# and at three times the learning rate. Then find a way to get it going.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 是步长的问题吗？把学习率改成十分之一和三倍，周期数不变，训练没有批量规范化的 LeNet。再找出怎样才能让它学
# 起来。

# %% tags=["answer"]

# %% tags=["solution"]
recipe = trained["lenet"].run.recipe
tries = {
    "a tenth of the rate": {"learning_rate": recipe.learning_rate / 10},
    "three times the rate": {"learning_rate": recipe.learning_rate * 3},
    "Adam, smaller batches": {
        "optimizer": "adamw", "learning_rate": 0.01, "momentum": 0.0, "nesterov": False, "batch_size": 32
    },
}  # fmt: skip
show.compare({name: cnnlab.train(recipe, **settings) for name, settings in tries.items()})

# %% [markdown] lang="en" tags=["solution"]
# It is not only the step size. Adam divides each weight's step by the size of its gradients, so small gradients do no
# harm; batch normalisation keeps the gradients from getting small.

# %% [markdown] lang="zh" tags=["solution"]
# 不只是步长的问题。Adam 把每个权重的步长除以它自己的梯度大小，所以梯度小也没关系；批量规范化则让梯度不会变得这么小。

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** Classify an image with the trained network in training mode, once in a batch with 15 others and once
# with 15 copies of itself. Then do the same in evaluation mode. What do you see?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 用训练好的网络在训练模式下给一张图像分类：一次与另外 15 张组成批量，一次与它自己的 15 个副本组成批量。再
# 换成评估模式。看到了什么？

# %% tags=["answer"]
x, _ = show.held_out(result, 16)

# %% tags=["solution"]
for mode in ("train", "eval"):
    net.train(mode == "train")
    with torch.no_grad():
        beside_others, beside_itself = net(x)[0], net(x[:1].repeat(16, 1, 1, 1))[0]
    print(f"{mode}: the logits differ by up to {(beside_others - beside_itself).abs().max():.4f}")

# %% [markdown] lang="en" tags=["solution"]
# In training mode the output for an image depends on the other images of the batch. The d2l book predicts its
# submission in this mode. (Each such forward pass also changes the running averages of this network.)

# %% [markdown] lang="zh" tags=["solution"]
# 训练模式下，一张图像的输出取决于同一批量中的其他图像。d2l 原书正是在这种模式下预测提交结果的。（每次这样的前向计算，
# 还会改动网络的移动平均。）

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 3.** For which $\gamma$ and $\beta$ does batch normalisation leave its input unchanged? Check.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 3.** $\gamma$ 和 $\beta$ 取什么值时，批量规范化不改变输入？验证一下。

# %% tags=["answer"]

# %% tags=["solution"]
x = 5 * torch.randn(8, 3, 4, 4) + 2
layer = BatchNorm(3)
layer.gamma.data = (x.var((0, 2, 3), unbiased=False) + layer.eps).sqrt()
layer.beta.data = x.mean((0, 2, 3))
print(torch.allclose(layer(x), x, atol=1e-4))

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 4.** The variance of the batch divides by $n$, the running variance by $n - 1$. After a linear layer, how
# much do they differ for batches of 256, and of 4? What happens with a batch of one?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 4.** 批量的方差除以 $n$，移动平均用的方差除以 $n - 1$。在线性层之后，批量大小为 256 和 4 时，两者相差多少？批量大小为 1 时会怎样？

# %% tags=["answer"]

# %% tags=["solution"]
for n in (256, 4):
    print(f"{n}: {n / (n - 1) - 1:.1%}")
try:
    nn.BatchNorm1d(120)(torch.rand(1, 120))
except ValueError as error:
    print(error)
