# %% [markdown] lang="en"
# # 1.4 Batch normalisation
#
# *Batch normalisation* (2015) normalises each channel to mean 0 and standard deviation 1 with the statistics of the
# batch, then applies a learned scale $\gamma$ and shift $\beta$:
#
# $$\mathrm{BN}(x) = \gamma\,\frac{x - \hat\mu}{\sqrt{\hat\sigma^2 + \epsilon}} + \beta$$
#
# In evaluation there may be no batch, so running averages of mean and variance are used instead.
#
# Why does it help? Its authors' explanation is *internal covariate shift*: the distribution of each layer's input keeps
# changing while the layers before it learn. This is disputed. S. Santurkar and others (*How does batch normalization
# help optimization?*, 2018) added such shifts after the normalisation on purpose, and the networks trained as well as
# before; their explanation is a smoother loss. This lesson only shows what can be measured on LeNet.

# %% [markdown] lang="zh"
# # 1.4 批量规范化
#
# **批量规范化**（2015）用当前批量的统计量把每个通道规范成均值 0、标准差 1，再乘以学到的拉伸参数 $\gamma$，加上学到的偏移
# 参数 $\beta$：
#
# $$\mathrm{BN}(x) = \gamma\,\frac{x - \hat\mu}{\sqrt{\hat\sigma^2 + \epsilon}} + \beta$$
#
# 评估时可能没有批量，就用均值和方差的移动平均代替。
#
# 它为什么有用？提出者的解释是**内部协变量偏移**：前面的层在学习，后面各层输入的分布就一直在变。这个解释有
# 争议：S. Santurkar 等人（*How does batch normalization help optimization?*，2018）在规范化之后故意加上这样的偏移，网络照样训练
# 得一样好；他们的解释是损失函数变得更平滑。本课只展示在 LeNet 上能测量到的东西。

# %%
import torch
from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show
from cnnlab.models.batch_norm import BatchNorm
from cnnlab.training.optim import initialize

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
# What does it do? Before any training, how much do the images of a batch differ at the input of each sigmoid? LeNet
# with PyTorch's default weights, with the manual's (Xavier), and with batch normalisation.

# %% [markdown] lang="zh"
# 它起什么作用？下面看训练之前，同一批量中的各张图像传到每个 sigmoid 时还相差多少：先是 LeNet，分别用 PyTorch 的默认权重和
# 教材的 Xavier 初始化；再是有批量规范化的 LeNet。

# %%
images = cnnlab.load_images(DATA, "train").images[:64]
x = nn.functional.interpolate(images / 255, size=28)
for name, scheme in (("lenet", "pytorch"), ("lenet", "xavier-uniform"), ("lenet-bn", "xavier-uniform")):
    torch.manual_seed(0)
    net = cnnlab.build_model(name)
    initialize(net, scheme)
    y, differences = x, []
    for layer in net:
        if isinstance(layer, nn.Sigmoid):
            differences.append(f"{y.std(0).mean().item():.4f}")
        y = layer(y)
    print(f"{name}, {scheme}: {differences}")

# %% [markdown] lang="en"
# From PyTorch's default weights the images are nearly identical by the last sigmoid, so the output hardly depends on
# them. With Xavier's larger weights the differences are several times as large, though still small. With batch
# normalisation the images differ at least as much at the last sigmoid as at the first, whatever the scale of the
# initial weights: it divides that scale out.
#
# ## Training
#
# The same recipe without and with batch normalisation, and with our own layer instead of PyTorch's, each from Xavier's
# weights as in the manual. `lenet-bn` differs from `lenet` in its padding, too. So there is a fourth network,
# `without-bn`: `lenet-bn` with its batch normalisation removed and nothing else changed.

# %% [markdown] lang="zh"
# 从 PyTorch 的默认权重出发，各张图像到最后一个 sigmoid 时已经几乎一样，输出也就几乎与图像无关。Xavier 初始化的权重大一些，
# 留下的差异是前者的几倍，但仍然很小。有了批量规范化，各张图像到最后一个 sigmoid 时的差异不比开头小，与初始权重的尺度无关：
# 这个尺度被除掉了。
#
# ## 训练
#
# 同一个配方：没有批量规范化，有批量规范化，以及用我们自己的层代替 PyTorch 的层；都与教材一样从 Xavier 初始化开
# 始。`lenet-bn` 与 `lenet` 的填充也不同，所以还有第四个网络 `without-bn`：把 `lenet-bn` 的批量规范化去掉，其余不变。


# %%
def without_bn(**sizes):
    return nn.Sequential(*[m for m in cnnlab.build_model("lenet-bn", **sizes) if "BatchNorm" not in type(m).__name__])


cnnlab.MODELS["without-bn"] = without_bn
networks = ("lenet", "without-bn", "lenet-bn", "lenet-bn-scratch")
settings = {"data": DATA, "limit": 6000, "init": "xavier-uniform", "epochs": 15}
trained = {name: cnnlab.train("digits", model=name, **settings) for name in networks}
for model, result in trained.items():
    s = result.summary
    print(f"{model}: loss {s['loss']:.4f}, val acc {s['val_acc']:.3f}, {s['images_per_second']:,.0f} images/s")

# %%
show.compare(trained)

# %% [markdown] lang="en"
# Our layer and PyTorch's differ only by rounding: their lines coincide, and the wider one shows behind the other.
# Without batch normalisation learning starts late, and how late depends on the seed: some runs have hardly begun after
# 15 epochs. So one run is not enough. With batch normalisation, every run learns from the first epoch on. These are the
# accuracies of three seeds, measured on the digits; the rows from `lenet, init=pytorch` on belong to exercise 1.

# %% [markdown] lang="zh"
# 我们的层与 PyTorch 的层只有舍入上的差别：两条曲线重合，后面较粗的一条从边上露出来。没有批量规范化时，学习开始得晚，晚
# 多少取决于种子：有的训练到第 15 个迭代周期还几乎没有开始，所以只运行一次是不够的。有了批量规范化，每次训练从第一个迭代周
# 期起就在学习。下面是在手写数字上用三个种子测得的精度；从 `lenet, init=pytorch` 起各行属于练习 1。

# %%
show.seeds("07_batch_norm")

# %% [markdown] lang="en"
# ## Looking inside
#
# The learned scale and shift of the first layer's channels, as the manual prints them; and the maps after its sigmoid.

# %% [markdown] lang="zh"
# ## 网络内部
#
# 像教材那样，打印第一层各通道学到的拉伸参数和偏移参数；再看第一个 sigmoid 之后的特征图。

# %%
result = trained["lenet-bn"]
net = cnnlab.load_model(result.run).network
print("gamma", [round(v, 3) for v in net[1].weight.tolist()])
print("beta ", [round(v, 3) for v in net[1].bias.tolist()])
show.maps(result, "2")

# %%
show.hardest(result)

# %% [markdown] lang="en"
# ## Results on Fashion-MNIST
#
# The manual's recipe on all of Fashion-MNIST. The test accuracy varies a lot between seeds, while the training figures
# hardly do. Perhaps the running averages do not fit the weights after large steps; this has not been measured. A figure
# from a single run says little here. `fast/lenet-bn` ends with small steps.

# %% [markdown] lang="zh"
# ## 在 Fashion-MNIST 上的结果
#
# 教材的配方，用在整个 Fashion-MNIST 上。各个种子的测试精度相差很大，训练的数字却很接近。也许是步长大时，移动平均跟
# 不上权重；这一点没有测量过。总之，单次运行的数字说明不了什么。`fast/lenet-bn` 在结尾用小步长。

# %%
show.results("lenet", "lenet-bn-scratch", "lenet-bn")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** What makes LeNet learn or fail without batch normalisation: the initial weights, the step size, the
# batch size or the optimizer? Change one thing at a time.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 没有批量规范化的 LeNet 学得会还是学不会，取决于什么：初始权重、步长、批量大小，还是优化算法？每次只改一样。

# %% tags=["answer"]

# %% tags=["solution"]
recipe = trained["lenet"].run.recipe
adam = {"optimizer": "adamw", "learning_rate": 0.01, "momentum": 0.0, "nesterov": False}  # which has its own rate
tries = {
    "PyTorch's weights": {"init": "pytorch"},
    "a tenth of the rate": {"learning_rate": recipe.learning_rate / 10},
    "three times the rate": {"learning_rate": recipe.learning_rate * 3},
    "batches of 32": {"batch_size": 32},
    "Adam": adam,
    "Adam, PyTorch's weights": {**adam, "init": "pytorch"},
    "batches of 32, PyTorch's weights": {"batch_size": 32, "init": "pytorch"},
}
show.compare({name: cnnlab.train(recipe, **settings) for name, settings in tries.items()})

# %% [markdown] lang="en" tags=["solution"]
# The table above has three seeds of each. With SGD the initial weights decide: from PyTorch's the network stays at
# chance with either batch size, from Xavier's it learns in some runs. Larger steps, or smaller batches and thus more
# steps, help with some seeds and not with others; with smaller steps it does not learn. Adam learns with every seed,
# from either initialisation: it divides each weight's step by the size of that weight's gradients, so small gradients
# do no harm. Batch normalisation makes SGD learn with every seed.

# %% [markdown] lang="zh" tags=["solution"]
# 上面的表对每种设置各有三个种子。使用 SGD 时，起决定作用的是初始权重：从 PyTorch 的默认权重出发，无论批量大小，都停留在随
# 机猜测的水平；从 Xavier 初始化出发，有几次学得会。加大步长或减小批量（步数更多），有的种子更好，有的毫无进展；减小步长则
# 学不会。Adam 在每个种子下都学得会，与初始权重无关：它把每个权重的步长除以该权重的梯度大小，所以梯度小也没关系。批量规范化
# 则使 SGD 在每个种子下都学得会。

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
# **练习 4.** 批量的方差除以 $n$，移动平均用的方差除以 $n - 1$。在全连接层之后，批量大小为 256 和 4 时，两者相差多少？批量大小为 1 时会怎样？

# %% tags=["answer"]

# %% tags=["solution"]
for n in (256, 4):
    print(f"{n}: {n / (n - 1) - 1:.1%}")
try:
    nn.BatchNorm1d(120)(torch.rand(1, 120))
except ValueError as error:
    print(error)
