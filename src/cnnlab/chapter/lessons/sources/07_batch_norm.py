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
# The cells run on the handwritten digits that come with cnnlab. `DATA = "fashion-mnist"` takes the chapter's own images
# instead (30 MB, downloaded once): at most 6,000 of them, by the recipe's `limit`; 0 takes all.

# %% [markdown] lang="zh"
# # 1.4 批量规范化
#
# 训练时，每一层输入的尺度一直在变，因为前面的层在变。**批量规范化**（2015）按批量的统计量把每个通道变回均值 0、标准差 1，再乘以学到的缩放
# $\gamma$，加上学到的偏移 $\beta$：
#
# $$\mathrm{BN}(x) = \gamma\,\frac{x - \hat\mu}{\sqrt{\hat\sigma^2 + \epsilon}} + \beta$$
#
# 评估时可能没有批量，就用均值和方差的移动平均代替。
#
# 下面的单元用 cnnlab 自带的手写数字运行。改成 `DATA = "fashion-mnist"`，就换成本章的图像（30 MB，只下载一次）：配方中的 `limit` 规定至多用
# 6,000 张，设为 0 则用全部。

# %%
import torch
from torch import nn

import cnnlab
from cnnlab.chapter.lessons import show
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
# 教材把式 1.2 的第二行叫作标准差。其实它是方差，分母是它的平方根。如果除以方差本身，这里得到的标准差会是 1/5。
#
# ## 形状
#
# 在每个 sigmoid 之前加了批量规范化的 LeNet。与教材一样，它去掉了 LeNet 的填充：两者不是严格的对照。

# %%
print(show.shapes("lenet-bn"))

# %% [markdown] lang="en"
# What does it do? Here is how much the images of a batch differ in what each sigmoid is given, before any training, in
# LeNet without and with it.

# %% [markdown] lang="zh"
# 它起什么作用？下面是训练之前，一个批量中的各张图像传到每个 sigmoid 时还相差多少：没有它的 LeNet，和有它的 LeNet。

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
# Without it the images have become nearly the same by the last sigmoid, so the answer can hardly depend on them. With it
# each sigmoid is given values around 0, where it is steepest, and as different as at the start.
#
# ## Training
#
# The same recipe without and with batch normalisation, and with ours in place of the framework's.

# %% [markdown] lang="zh"
# 没有它，各张图像到最后一个 sigmoid 时已经几乎一样，答案也就很难取决于图像。有了它，每个 sigmoid 得到的值都在 0 附近，那里最陡，而且差异和一开
# 始一样大。
#
# ## 训练
#
# 同一个配方：没有批量规范化，有批量规范化，以及用我们自己的层代替框架的层。

# %%
recipe = cnnlab.RECIPES["digits"].changed(data=DATA, limit=6000, epochs=15)
trained = {model: cnnlab.train(recipe.changed(model=model)) for model in ("lenet", "lenet-bn", "lenet-bn-scratch")}
for model, result in trained.items():
    s = result.summary
    print(f"{model}: loss {s['loss']:.4f}, val acc {s['val_acc']:.3f}, {s['images_per_second']:,.0f} images/s")

# %%
show.compare(trained)

# %% [markdown] lang="en"
# Ours and the framework's differ by rounding alone: one line hides the other. LeNet without it needs many more steps
# than these to leave chance, if it does (exercise 1).
#
# ## Looking inside
#
# The learned scale and shift of the first layer's channels, as the manual prints them; and the maps behind its sigmoid.

# %% [markdown] lang="zh"
# 我们的层与框架的层只有舍入上的差别：两条曲线重合在一起。没有它的 LeNet，要走出随机猜测的水平，需要的步数远不止这些（练习 1）。
#
# ## 看看里面
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
# ## In full
#
# The manual's recipe on all of Fashion-MNIST. Look at the deviation of the test accuracy over the seeds, and at how close
# the training figures are: after large steps the running averages may fit the weights badly. A figure from one run says
# little here. `fast/lenet-bn` ends with small steps.

# %% [markdown] lang="zh"
# ## 完整实验
#
# 教材的配方，用在整个 Fashion-MNIST 上。注意各个种子的测试精度相差很大，训练的数字却很接近：步长大时，移动平均可能跟不上权重。在这里，单次运行
# 的数字说明不了什么。`fast/lenet-bn` 以小步长结束。

# %%
show.results("lenet", "lenet-bn-scratch", "lenet-bn")

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** Is it the step size? Train LeNet without batch normalisation at a tenth and at three times the learning
# rate, for as many epochs. Then find out what gets it going.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 是步长的问题吗？把学习率改成十分之一和三倍，周期数不变，训练没有批量规范化的 LeNet。再找出怎样才能让它学起来。

# %% tags=["answer"]

# %% tags=["solution"]
rate = recipe.learning_rate
tries = {
    "a tenth of the rate": recipe.changed(learning_rate=rate / 10),
    "three times the rate": recipe.changed(learning_rate=rate * 3),
    "Adam, smaller batches": recipe.changed(
        optimizer="adamw", learning_rate=0.01, momentum=0.0, nesterov=False, batch_size=32
    ),
}
show.compare({name: cnnlab.train(changed.changed(model="lenet")) for name, changed in tries.items()})

# %% [markdown] lang="en" tags=["solution"]
# It is not the step size alone. Adam divides each weight's step by the size of its own gradients, so that it does not
# matter that they are small; batch normalisation sees to it that they are not.

# %% [markdown] lang="zh" tags=["solution"]
# 不只是步长的问题。Adam 把每个权重的步长除以它自己的梯度大小，所以梯度小也没关系；批量规范化则让梯度不会这么小。

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** Let the trained network name one image in training mode, once beside 15 others and once beside 15 copies
# of itself. Then in evaluation mode. What do you see?

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 让训练好的网络在训练模式下判断一张图像：一次与另外 15 张一起，一次与它自己的 15 个副本一起。再换成评估模式。看到了什么？

# %% tags=["answer"]
x, _ = show.held_out(result, 16)

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
# 训练模式下，一张图像的答案取决于它旁边的图像。教材的来源正是在这种模式下预测提交结果的。（每次这样的前向计算，还会改动网络的移动平均。）

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 3.** Which $\gamma$ and $\beta$ make batch normalisation leave its input as it is? Check.

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
# **Exercise 4.** The batch's variance divides by $n$, the running variance by $n - 1$. By how much do they differ after a
# linear layer for batches of 256, and of 4? What happens with a batch of one?

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
