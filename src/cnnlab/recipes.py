"""The named recipes: the manual's experiments as printed there, and our defaults for each kind of source.

The comment above a recipe gives the accuracy after the last epoch (mean and standard deviation over five seeds) and the
training time, on two cores of an AMD EPYC (Zen 4, unless a comment says Zen 5):
benchmarks/results/recipe-seeds_amd-epyc-avx512-2-cores_2026-11-30.json and benchmarks/records/.
Run a recipe with `cnnlab train --data SOURCE --recipe NAME`.
"""

from __future__ import annotations

from dataclasses import replace

from cnnlab.io.errors import CnnlabError, expand, unknown
from cnnlab.io.files import read_json
from cnnlab.recipe import Recipe

# Common to all Fashion-MNIST experiments of the manual's chapter 1: pixels in 0..1 without normalization,
# Xavier-uniform initial weights, plain SGD without momentum, weight decay or schedule, all 60,000 images used for
# training, evaluation on the test set after each epoch.
_MANUAL = Recipe(
    data="fashion-mnist",
    epochs=10,
    batch_size=256,
    init="xavier-uniform",
    normalize=False,
    val_fraction=0.0,
    eval_split="test",
)

# Ours for CIFAR-10, tuned on the validation split only (docs/log.md).
_CIFAR = Recipe(
    name="speed/cifar-90",
    data="store:PATH",
    model="airbench94",
    epochs=3,
    batch_size=500,
    optimizer="muon",
    learning_rate=0.24,
    other_learning_rate=0.01,
    momentum=0.6,
    schedule="one-cycle",
    warmup=0.0,
    label_smoothing=0.2,
    shift=2,
    shift_fill="reflect",
    flip=True,
    alternating_flip=True,
    precision="auto",
    memory_format="channels_last",
)

# Small batches are too noisy for the higher accuracy, and large ones take the same time per image.
_CIFAR_LARGE = replace(_CIFAR, name="speed/cifar-94", epochs=10, batch_size=2000, other_learning_rate=0.02)

# Ours for Fashion-MNIST, for the shortest time to an accuracy, tuned on the validation split only (docs/log.md).
# The clothes are centred, so no random shift.
_SPEED = replace(
    _CIFAR, name="speed/fashion-92", data="fashion-mnist", epochs=1, batch_size=512, shift=0, shift_fill="zeros"
)

_SMALL = replace(_SPEED, name="speed/fashion-90", model="airbench-small", epochs=2, start_size=22, flip=False,
                 alternating_flip=False)  # fmt: skip

# The chapter's networks at the native 28 pixels (VGG and DenseNet: 32), tuned for the manual's accuracy.
_FAST = replace(_SPEED, name="fast/resnet18", model="resnet18-small", batch_size=256, label_smoothing=0.1, flip=False,
                alternating_flip=False)  # fmt: skip
_FAST_PLAIN = Recipe(  # without batch norm
    name="fast/alexnet",
    data="fashion-mnist",
    model="alexnet-small",
    epochs=4,
    batch_size=128,
    optimizer="adamw",
    learning_rate=0.002,
    weight_decay=5e-4,
    schedule="one-cycle",
    init="he-normal",
    precision="auto",
    memory_format="channels_last",
)
# Six and sixteen channels are too few to gain from channels_last or bfloat16; BN-LeNet gets slower.
_FAST_LENET = replace(
    _FAST_PLAIN, name="fast/lenet", model="lenet", epochs=2, learning_rate=0.01, init="pytorch",
    precision="float32", memory_format="contiguous",
)  # fmt: skip

RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        # train acc 0.824 ± 0.002, test acc 0.801 ± 0.010, 39 s
        replace(_MANUAL, name="manual/lenet", model="lenet", learning_rate=0.9),
        # train acc 0.901 ± 0.001, test acc 0.846 ± 0.040, 37 s
        replace(_MANUAL, name="manual/lenet-bn", model="lenet-bn", learning_rate=1.0),
        replace(_MANUAL, name="manual/lenet-bn-scratch", model="lenet-bn-scratch", learning_rate=1.0),
        replace(_MANUAL, name="manual/alexnet", model="alexnet", learning_rate=0.01, batch_size=128, image_size=224),
        replace(
            _MANUAL, name="manual/vgg11", model="vgg11-quarter", learning_rate=0.05, batch_size=128, image_size=224
        ),
        replace(_MANUAL, name="manual/nin", model="nin", learning_rate=0.1, batch_size=128, image_size=224),
        replace(_MANUAL, name="manual/resnet18", model="resnet18-manual", learning_rate=0.05, image_size=96),
        replace(_MANUAL, name="manual/googlenet", model="googlenet", learning_rate=0.1, batch_size=128, image_size=96),
        replace(_MANUAL, name="manual/densenet", model="densenet", learning_rate=0.1, image_size=96),
        # The competition of section 1.6, trained as in the manual's code: loss summed over a batch of 128, learning
        # rate 2e-4, weight decay 5e-4. With the mean loss the same updates need 128 times that learning rate and 1/128
        # of that weight decay. Unlike that code: the last batch is not dropped, biases and norm scales have no weight
        # decay, the crop is resampled once (there the image is first enlarged to 40 pixels), and pixels are normalized
        # with the training set's own standard deviation.
        Recipe(
            name="manual/cifar-resnet18",
            data="store:PATH",
            model="resnet18-manual-cifar",
            epochs=20,
            batch_size=128,
            learning_rate=128 * 2e-4,
            momentum=0.9,
            weight_decay=5e-4 / 128,
            schedule="step",
            decay=0.9,
            decay_every=4,
            crop_scale=0.64,
            flip=True,
            memory_format="channels_last",
        ),
        # Accuracy on held-out images without and with test-time augmentation; time of `cnnlab kaggle all` in bfloat16:
        # benchmarks/results/competition-*.json. The first two: one seed each, 5,000 images, six views.
        # val acc 0.932, 0.937; 9 minutes with --no-retrain
        replace(_CIFAR_LARGE, name="cifar/10min", epochs=8),
        # val acc 0.942, 0.947; 33 minutes with retraining
        replace(_CIFAR_LARGE, name="cifar/1h", epochs=16),
        # An ensemble of three networks, on 2,000 held-out images:
        # `cnnlab kaggle all FOLDER --recipe cifar/winner --seeds 3 --no-retrain`.
        # val acc 0.9515, 0.9565 with two views; 137 minutes on two slower cores (Zen 4), beside other work
        replace(_CIFAR_LARGE, name="cifar/winner", epochs=30, start_size=20, cutout=10, val_fraction=0.04),
        # For a GPU; not measured. The paper's settings for 96%, with Muon instead of SGD.
        replace(_CIFAR, name="cifar/gpu", model="airbench96", epochs=40, batch_size=1000, shift=4, cutout=12),
        # On the test set, evaluated once per seed with the weights of the last epoch; five seeds, trained on 54,000
        # images: benchmarks/records/. The times include the evaluation.
        # test acc 0.9039 ± 0.0023, 8 s
        _SMALL,
        # test acc 0.9245 ± 0.0026, 2 views, 86 s
        _SPEED,
        # test acc 0.9331 ± 0.0023, 2 views, 126 s
        replace(_SPEED, name="speed/fashion-93", epochs=2, start_size=20),
        # test acc 0.9408 ± 0.0008, 2 views, 251 s
        replace(_SPEED, name="speed/fashion-94", epochs=4, start_size=20),
        # test acc 0.9507 ± 0.0012, 2 views, 743 s of training on Zen 5
        replace(_SPEED, name="speed/fashion-95", epochs=20, batch_size=1024, other_learning_rate=0.015, cutout=8),
        # Not measured: for a GPU.
        replace(_SPEED, name="speed/fashion-96", model="airbench96", epochs=40, batch_size=1000, shift=2, cutout=8),
        # test acc 0.9936 ± 0.0008, 4 s
        replace(_SMALL, name="speed/mnist-99", data="mnist", epochs=1),
        # test acc 0.9957 ± 0.0006, 41 s
        replace(_SMALL, name="speed/mnist-99.5", data="mnist", epochs=10, start_size=0, shift=1),
        # Not measured: the data was not available.
        replace(_CIFAR_LARGE, name="speed/cifar100-70", data="cifar100", epochs=16),
        replace(_CIFAR_LARGE, name="speed/cifar100-75", data="cifar100", model="airbench96", epochs=24, shift=4),
        # On the validation split, five seeds: benchmarks/records/.
        # val acc 0.9143 ± 0.0015 with six views, 296 s
        _CIFAR,
        # val acc 0.9436 ± 0.0005 with six views, 875 s
        _CIFAR_LARGE,
        # Not measured: for a GPU.
        replace(_CIFAR, name="speed/cifar-96", model="airbench96", epochs=40, batch_size=1000, shift=4, cutout=12),
        # On the test set, on Zen 5: benchmarks/results/fashion-speed*.json.
        # test acc 0.8356 ± 0.0091, 3 s of training
        _FAST_LENET,
        # test acc 0.8871 ± 0.0018, 4 s of training
        replace(_FAST_LENET, name="fast/lenet-bn", model="lenet-bn", epochs=3, batch_size=256, learning_rate=0.02),
        # test acc 0.9060 ± 0.0014, 40 s of training
        _FAST_PLAIN,
        # test acc 0.9094 ± 0.0016, 42 s of training
        replace(_FAST_PLAIN, name="fast/vgg11", model="vgg11-small", image_size=32),
        # test acc 0.8787 ± 0.0034, 27 s of training
        replace(_FAST_PLAIN, name="fast/nin", model="nin-small", epochs=2, learning_rate=0.003),
        # test acc 0.9183 ± 0.0023, 22 s of training
        replace(_FAST, epochs=1),
        # test acc 0.9002 ± 0.0026, 33 s of training
        replace(_FAST, name="fast/googlenet", model="googlenet-small", epochs=2),
        # test acc 0.8999 ± 0.0010, 15 s of training
        replace(_FAST, name="fast/densenet", model="densenet", image_size=32, epochs=1),
        # val acc 0.994 ± 0.004, 3 s
        Recipe(
            name="digits",
            data="digits",
            model="lenet-bn",
            epochs=30,
            batch_size=64,
            learning_rate=0.2,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
            schedule="one-cycle",
            image_size=28,
            shift=2,
            val_fraction=0.2,
        ),
        # val acc 0.907 ± 0.003, 35 s
        Recipe(
            name="fashion-mnist",
            data="fashion-mnist",
            model="lenet-bn",
            epochs=10,
            batch_size=256,
            learning_rate=0.2,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
            schedule="one-cycle",
        ),
        # ImageNet: 1,000 classes, packed by `cnnlab data pack`; on 8 GPUs, 128 images of the batch on each.
        # Settings of torchvision's training of ResNet-50 where it has them, for 100 epochs. Never trained in full: only
        # a few steps were run, on data of that shape. Estimated cost, not measured: 24.5 GFLOP per training image, 128
        # million images, 3.1e18 FLOP; four and a half hours on 8 GPUs at 1,000 images/s each. The decoders must keep
        # up: at 3.8 ms of CPU time per image, as measured by benchmarks/packed.py, that takes 30 cores.
        # Crops are taken from the middle square of 224 pixels, not from the whole photograph, hence their larger area.
        Recipe(
            name="imagenet/resnet50",
            data="pack:PATH",
            model="resnet50",
            epochs=100,
            batch_size=1024,
            learning_rate=0.5,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-5,
            schedule="one-cycle",
            warmup=0.05,
            label_smoothing=0.1,
            image_size=224,
            fit="crop",
            crop_scale=0.25,
            crop_ratio=4 / 3,
            flip=True,
            randaugment=2,
            magnitude=9,
            mixup=0.2,
            precision="auto",
            memory_format="channels_last",
            average="ema",
            average_decay=0.99,
            average_every=32,
            val_fraction=0.02,
        ),
        # For a network or images of your own: AdamW suits most networks, and the images are left as they are.
        Recipe(
            name="own",
            batch_size=64,
            optimizer="adamw",
            learning_rate=0.002,
            weight_decay=0.01,
            schedule="one-cycle",
        ),
        # For networks with published weights, on any source: first the head is trained on features that are computed
        # once, then all layers, the early ones at a lower learning rate. Its settings were tried with one seed each
        # (docs/log.md).
        Recipe(
            name="finetune",
            data="folder:PATH",
            model="efficientnet-lite0.in1k",
            epochs=18,
            freeze_epochs=10,
            batch_size=32,
            optimizer="adamw",
            learning_rate=0.001,
            layer_decay=0.85,
            freeze_batch_norm=True,
            weight_decay=0.05,
            schedule="one-cycle",
            label_smoothing=0.1,
            shift=8,
            shift_fill="reflect",
            flip=True,
            randaugment=2,
            precision="auto",
            memory_format="channels_last",
            val_fraction=0.2,
        ),
        # For images of your own, to which `defaults.fitted_settings` adapts it. A first choice, from few runs:
        # docs/log.md.
        replace(
            _FAST,
            name="images",
            data="folder:PATH",
            model="airbench94",
            epochs=20,
            batch_size=64,
            shift=4,
            shift_fill="reflect",
            label_smoothing=0.2,
            flip=True,
            val_fraction=0.2,
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe called `name`, or read it from a file NAME.json, such as a run's recipe.json.

    Raise CnnlabError for an unknown name, suggesting similar ones, or for a file that is not a recipe.
    """
    if name.lower().endswith(".json"):
        path = expand(name)
        values = read_json(path)
        try:
            return Recipe.from_dict(values)
        except (CnnlabError, TypeError) as error:
            raise CnnlabError(f"{path} is not a recipe: {error}; a run's recipe.json is one") from error
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
