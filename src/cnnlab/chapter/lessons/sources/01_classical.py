# %% [markdown] lang="en"
# # Before the chapter: hand-made features
#
# Until 2012 most image classifiers had two parts. People designed the *features*, numbers that describe an image, and
# only the classifier was learned. A good feature does not change when nothing important changes: when the light is
# dimmer, or a stroke moves a little to the left.
#
# *HOG*, histograms of oriented gradients, divides the image into small cells and measures how strong the edges of each
# direction are in each cell. A *support vector machine* then separates each class from the others by a plane with the
# largest possible margin.
#
# The cells run on the handwritten digits that come with cnnlab. Set `DATA = "fashion-mnist"` to use the chapter's own
# images (30 MB, downloaded once).

# %% [markdown] lang="zh"
# # 本章之前：手工设计的特征
#
# 2012 年以前，图像分类器大多分成两部分：**特征**，也就是描述图像的一组数，由人来设计；只有后面的分类器是学出来的。好
# 的特征不受无关变化的影响：光线暗一点，笔画偏左一点，它都基本不变。
#
# **HOG**（方向梯度直方图）把图像切成小格，统计每一格里各个方向的边缘有多强。**支持向量机**再用间隔最大的平面，把每个
# 类别与其余类别分开。
#
# 下面的单元格使用 cnnlab 自带的手写数字。改成 `DATA = "fashion-mnist"`，就换成本章的图像（30 MB，只下载一次）。

# %%
import numpy as np
import torch

from cnnlab import load_images
from cnnlab.chapter.classical.features import HOG_BINS, hog
from cnnlab.chapter.lessons import show

DATA = "digits"
whole = load_images(DATA, "train")
images, labels, classes = whole.images[:3000], whole.labels[:3000], whole.classes
show.grid(images[:16], [classes[k] for k in labels[:16]])

# %% [markdown] lang="en"
# ## Shapes
#
# HOG turns each image into rows x rows x directions numbers (images below 28 pixels are enlarged first). Here are the
# twelve directions of the first image, each as a small picture of the cells. A cell is bright where the image gets
# brighter in that direction: to the right for 0°, downwards for 90°. The left edges of a 0's strokes appear in one
# picture, the right edges in the opposite one.

# %% [markdown] lang="zh"
# ## 形状
#
# HOG 把每张图像变成 行 x 行 x 方向 个数（不到 28 像素的图像先放大）。下面是第一张图像的十二个方向，每个方向画成一张由
# 小格组成的图：原图沿这个方向变亮的地方就亮，0° 是向右，90° 是向下。数字 0 的笔画，左边缘和右边缘分别出现在方向相反的
# 两张图里。

# %%
features = hog(images.numpy())
rows = int((features.shape[1] / HOG_BINS) ** 0.5)
print(tuple(images.shape), "->", features.shape, "=", f"{len(images)} x {rows} x {rows} x {HOG_BINS}")
first = torch.from_numpy(features[0]).reshape(rows, rows, HOG_BINS).permute(2, 0, 1)
show.grid(first, [f"{360 // HOG_BINS * k}°" for k in range(HOG_BINS)], together=True, columns=6)

# %% [markdown] lang="en"
# ## Training
#
# The same classifier on two kinds of features: the pixels themselves, and HOG. A fifth of the images is held out for
# the comparison. The curves show how the accuracy on them grows with the number of training images.

# %% [markdown] lang="zh"
# ## 训练
#
# 同一个分类器，两种特征：像素本身，以及 HOG。留出五分之一的图像用来比较。曲线画的是：训练图像越多，留出图像上的精度怎
# 样变化。

# %%
from cnnlab.chapter.classical.classifiers import svm
from cnnlab.data import stratified_split

fit, held_out = (index.numpy() for index in stratified_split(labels, 0.2, seed=0))
fit = np.random.default_rng(0).permutation(fit)


def train(x, count):
    """Train on `count` images; return the model and its accuracy on the held-out images."""
    x = x / (x**2).sum(1).mean() ** 0.5
    model = svm(x[fit[:count]], labels.numpy()[fit[:count]], c=1.0, seed=0, threads=1)
    return model, (model.predict(x[held_out]) == labels.numpy()[held_out]).mean()


pixels = images.numpy().reshape(len(images), -1).astype("float32")
counts = [100, 200, 400, 800, len(fit)]
on_pixels = [train(pixels, count)[1] for count in counts]
on_hog = [train(features, count)[1] for count in counts]
print(f"pixels {on_pixels[-1]:.3f}, HOG {on_hog[-1]:.3f}")
show.plot(counts, {"pixels": on_pixels, "HOG": on_hog}, "training images", "accuracy")

# %% [markdown] lang="en"
# ## Looking inside
#
# The model has a weight for each feature and class. Summed over the directions, the weights show what the edges in each
# cell contribute: bright cells are evidence for the class, dark cells evidence against it. An edge in the middle, for
# example, is evidence against a 0.

# %% [markdown] lang="zh"
# ## 模型内部
#
# 每个特征对每个类别都有一个权重。把各个方向的权重加起来，就能看出每一格里的边缘对这个类别意味着什么：亮的表示支持，暗
# 的表示反对。比如，正中间有边缘就不像 0。

# %%
model, _ = train(features, len(fit))
weights = torch.from_numpy(model.coef_).reshape(len(classes), rows, rows, HOG_BINS).sum(3)
show.grid(weights, classes, columns=5)

# %% [markdown] lang="en"
# ## Results on Fashion-MNIST
#
# All images of Fashion-MNIST; settings chosen on validation images, test set used once. The last rows are LeNet, which
# learns its features. `cnnlab reproduce classical` repeats the first rows.

# %% [markdown] lang="zh"
# ## 在 Fashion-MNIST 上的结果
#
# 使用 Fashion-MNIST 的全部图像：设置只凭验证集选定，测试集只用一次。最后几行是 LeNet，它的特征是学出来
# 的。`cnnlab reproduce classical` 可以重做前几行。

# %%
show.results("hog-linear", "hog-kernel", "sift-linear", "lenet", "lenet-bn")

# %% [markdown] lang="en"
# Good hand-made features are hard to beat for a network as small as LeNet, and they need no GPU. But they cannot learn
# to measure anything else: no classifier can use what HOG does not record, however many images there are.

# %% [markdown] lang="zh"
# 像 LeNet 这样小的网络很难胜过好的手工特征，而且手工特征不需要 GPU。但它们学不会测量别的东西：HOG 没有记录的信息，后
# 面的分类器就无从利用，图像再多也没用。

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 1.** How many numbers does HOG compute for an image of 28 pixels if its cells are 4 pixels wide? And for an
# image of 32 pixels? Calculate first, then check with random images.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 1.** 小格宽 4 像素时，HOG 把 28 像素的图像变成多少个数？32 像素的呢？先自己算，再用随机图像验证。

# %% tags=["answer"]

# %% tags=["solution"]
for side in (28, 32):
    noise = np.random.default_rng(0).integers(0, 256, (1, 1, side, side), dtype=np.uint8)
    print(side, (side // 4) ** 2 * HOG_BINS, hog(noise).shape[1])

# %% [markdown] lang="en" tags=["exercise"]
# **Exercise 2.** An image is rotated by 90 degrees. How does its HOG change? Describe it in terms of cells and
# directions, then check.

# %% [markdown] lang="zh" tags=["exercise"]
# **练习 2.** 图像旋转 90 度，它的 HOG 会怎样变？先从小格和方向两方面说明，再验证。

# %% tags=["answer"]

# %% tags=["solution"]
rotated = hog(np.rot90(images.numpy(), axes=(2, 3)).copy()).reshape(-1, rows, rows, HOG_BINS)
expected = np.rot90(features.reshape(-1, rows, rows, HOG_BINS), axes=(1, 2))
for shift in (0, HOG_BINS // 4, -HOG_BINS // 4):
    print(
        f"directions shifted by {shift:2d}: largest difference {np.abs(rotated - np.roll(expected, shift, 3)).max():.3f}"
    )

# %% [markdown] lang="en" tags=["solution"]
# The cells rotate with the image, and in each cell every direction turns by a quarter of a circle. HOG is not invariant
# to rotation, nor should it be here: a 6 upside down is a 9.

# %% [markdown] lang="zh" tags=["solution"]
# 小格随图像一起旋转，每格里的各个方向也转过四分之一圈。HOG 没有旋转不变性，在这里也不该有：6 倒过来就是 9。
