"""CIFAR-10, a ResNet-18 trained against PGD-10: `python -m benchmarks.cifar --epochs 30 --decay 5e-4`.

The experiment behind "Bag of tricks for adversarial training", for whoever has a GPU; no page of the
book needs it. It is the publication's base recipe, with the weight decays that it compares. A run that
is killed goes on where it was; what is found is kept in .bench.
Source: Pang et al. 2021, section 3.

As published: ResNet-18 for images of 32×32, ε = 8/255, PGD with 10 steps of 2/255 from a random point,
BatchNorm in train mode under attack, images cropped and mirrored at random, SGD with momentum 0.9 in
batches of 128, step size 0.1, divided by 10 after 100/110 and 105/110 of the run. Other than published:
fewer than 110 epochs if you ask for them; of all epochs we keep the one with the best PGD-10 on 1,000
images of the training set that are held out; AutoAttack is ours, on the first test images.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adv_lib import attacks, data, evaluation, losses, models, schedules, suite, training
from adv_lib.optimisers import SGD
from adv_lib.threat import Ball

from . import networks, tables

BALL = Ball(math.inf, 8 / 255, (0, 1))
EPOCHS, DROPS = 110, (100 / 110, 105 / 110)
DECAYS = (1e-4, 2e-4, 5e-4)
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)  # of the training set's channels
COLUMNS = ("clean", "PGD-10", "AutoAttack")
PUBLISHED = {  # AutoAttack; for ResNet-18 the publication has figures in print for one decay only
    5e-4: "82.52%, 53.58%, 48.51% (ResNet-18); AutoAttack 52.19% (WRN-34-10)",
    2e-4: "AutoAttack 48.72% (WRN-34-10)",
    1e-4: "AutoAttack 46.43% (WRN-34-10)",
}


def network(seed: int, width: int = 64) -> nn.Sequential:
    """torchvision's ResNet-18 with a first convolution of 3×3 and no pooling after it.

    width: channels of its first part; 64 is a ResNet-18, others are for tests.
    """
    from torchvision.models.resnet import BasicBlock, resnet18

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = resnet18(num_classes=10)
        net.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
        if width != 64:
            net.inplanes, net.bn1 = width, nn.BatchNorm2d(width)
            for i in range(4):
                part = net._make_layer(BasicBlock, width * 2**i, 2, stride=1 if i == 0 else 2)
                setattr(net, f"layer{i + 1}", part)
            net.fc = nn.Linear(8 * width, 10)
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d):  # as torchvision does
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(models.Normalise(MEAN, DEVIATION), net)


def pgd(model, x: Tensor, y: Tensor, ball: Ball, *, steps: int, generator: torch.Generator) -> Tensor:
    """PGD as published: steps of ε/4 on the cross-entropy from a random point, and the last point."""
    return attacks.pgd(
        model,
        x,
        y,
        ball,
        steps=steps,
        step_size=ball.eps / 4,
        start=ball.sample(x, generator),
        loss=losses.cross_entropy,
        keep="last",
    )


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every image moved by up to four pixels, with 0 where it was not, and half of them mirrored."""
    (n, _, height, width), device = x.shape, x.device
    by = torch.randint(0, 9, (2, n, 1), generator=generator, device=device)
    rows, columns = (
        by[0] + torch.arange(height, device=device),
        by[1] + torch.arange(width, device=device),
    )
    images = torch.arange(n, device=device)[:, None, None]
    moved = F.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]]
    moved = moved.permute(0, 3, 1, 2)
    mirrored = torch.rand(n, 1, 1, 1, generator=generator, device=device) < 0.5
    return torch.where(mirrored, moved.flip(3), moved).contiguous()


def train(
    model: nn.Module,
    pair: data.Data,
    *,
    epochs: int,
    decay: float,
    generator: torch.Generator,
    checkpoint=None,
    steps: int = 10,
    held: int = 1000,
) -> Iterator[training.Epoch]:
    """The published recipe; the model ends with the weights that were best on held-out images.

    generator: draws the batches, the crops and the starts of the attacks, so that a run goes on exactly.
    steps: of the attack.  held: how many of the last training images are held out.
    """
    x, y = pair.x_train, pair.y_train
    attack = partial(pgd, steps=steps, generator=generator)
    attacked = training.adversarial(attack, BALL, mode="train")

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return attacked(model, shifted(x, generator), y)

    def robust(model: nn.Module) -> float:
        own = torch.Generator(x.device).manual_seed(0)
        judge = partial(pgd, steps=steps, generator=own)
        return evaluation.robust_accuracy(model, x[-held:], y[-held:], BALL, [judge]).value

    return training.fit(
        model.train(),
        (x[:-held], y[:-held]),
        inner,
        epochs=epochs,
        lr=schedules.step(0.1, DROPS),
        batch_size=128,
        optimiser=SGD(momentum=0.9, weight_decay=decay),
        generator=generator,
        watch={"PGD-10": robust},
        best="PGD-10",
        checkpoint=checkpoint,
    )


def judge(
    model: nn.Module, pair: data.Data, attacked: int, checkpoint=None, **effort
) -> dict[str, float]:
    """Accuracy on all test images, clean and under PGD-10, and under AutoAttack on the first of them.

    attacked: how many.  effort: of `suite.autoattack`, where it is not the standard one.
    """
    x, y = pair.x_test, pair.y_test
    share = partial(evaluation.robust_accuracy, model, x, y, BALL, batch_size=500)
    weak = partial(pgd, steps=10, generator=torch.Generator(x.device).manual_seed(0))
    settings = {"batch_size": 500, "checkpoint": checkpoint} | effort
    outcome = suite.autoattack(model, x[:attacked], y[:attacked], BALL, **settings)
    for doubt in outcome.doubts:
        print(f"  not to be believed: {doubt}", flush=True)
    return dict(
        zip(COLUMNS, (share().value, share([weak]).value, outcome.robust_accuracy.value), strict=True)
    )


def experiment(
    pair: data.Data,
    decay: float,
    epochs: int,
    seed: int = 0,
    attacked: int = 1000,
    width: int = 64,
    steps: int = 10,
    held: int = 1000,
    **effort,
) -> dict[str, float]:
    """One network, trained and judged; kept in .bench, and so is how far it has come."""
    of = f"cifar_{decay:g}_{epochs}_{seed}_{width}_{len(pair.y_train)}"

    def train_it(model: nn.Module) -> None:
        path, device = networks.KEPT / f"{of}.run", pair.x_train.device
        generator = torch.Generator(device).manual_seed(seed)
        settings = {"epochs": epochs, "decay": decay, "steps": steps, "held": held}
        run = train(model, pair, generator=generator, checkpoint=path, **settings)
        for epoch in run:
            print(f"  {of}: epoch {epoch.number}, loss {epoch.loss:.4f}, ", end="")
            print(f"held-out PGD-10 {epoch.watched['PGD-10']:.2%}", flush=True)
        path.unlink()

    def find() -> dict[str, float]:
        model = networks.kept(of, network(seed, width).to(pair.x_train.device), train_it)
        kept = networks.KEPT / f"{of}_{attacked}.attack"
        found = judge(model, pair, attacked, kept, **effort)
        kept.unlink(missing_ok=True)
        return found

    return networks.once(f"{of}_{attacked}", find)


def main(*words: str) -> None:
    """Train and judge a network for every weight decay asked for, and print what comes out."""
    parser = argparse.ArgumentParser("python -m benchmarks.cifar", description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"published: {EPOCHS}")
    parser.add_argument("--decay", type=float, nargs="+", default=DECAYS, help="weight decays")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attacked", type=int, default=1000, help="test images under AutoAttack")
    asked = parser.parse_args(words)
    try:
        pair = networks.on_device(data.load("cifar10"))
    except RuntimeError:
        sys.exit(
            f"CIFAR-10 is not in {data.folder()} and could not be downloaded: connect to the internet, "
            "or put the folder cifar-10-batches-py there (set ADV_LIB_DATA for another place)"
        )
    if networks.DEVICE == "cpu":
        print("without a GPU an epoch takes hours; networks and epochs done are kept in .bench")
    rows = []
    for decay in asked.decay:
        found = experiment(pair, decay, asked.epochs, asked.seed, asked.attacked)
        ours = [f"{found[column]:.2%}" for column in COLUMNS]
        rows.append(tables.printed(f"{decay:g}", *ours, PUBLISHED.get(decay, "–")))
    print(f"{asked.epochs} epochs (published: {EPOCHS}), AutoAttack on {asked.attacked:,} test images")
    print(tables.table(("weight decay", *COLUMNS, "published"), rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
