import math, time, sys, torch
from functools import partial
from torch import nn
from adv_lib import attacks, data, losses, mahalanobis as m, models, suite, training, evaluation
from adv_lib.optimisers import SGD
from adv_lib.stack import Stack
from adv_lib.threat import Ball
torch.set_num_threads(1)
D = data.load("digits")
N = 1000
X, Y = D.x_train[:N], D.y_train[:N]
def gen(s): return torch.Generator().manual_seed(s)
def body(s): return models.mlp([64,100,64], gen(s))
def lin(s):
    return nn.Sequential(*body(s), *models.mlp([64,10], gen(100+s))[1:])
def cen(s, mu, learned=False): return nn.Sequential(*body(s), m.NearestCentre(mu, learned=learned))
CE = losses.cross_entropy
clean = training.clean
opt = SGD(0.9)
ball = Ball(math.inf, 0.1, (0,1))
def pgd_loss(loss): return partial(attacks.pgd, steps=10, loss=loss, keep="last")
def spec():
    mc = partial(clean, loss=m.mmc)
    S = {
     "SCE": (lin, clean, .05, 100),
     "centre loss .1": (lin, m.centre_loss(.1), .03, 100),
     "MMLDA-1": (lambda s: cen(s, m.centres(10,64,1.)), clean, .05, 100),
     "MMLDA-10": (lambda s: cen(s, m.centres(10,64,10.)), clean, .01, 100),
     "L-GM": (lambda s: cen(s, m.random_centres(10,64,1.,gen(7+s)), True), partial(clean, loss=partial(m.large_margin, alpha=.3, weight=.1)), .02, 100),
     "MMC-1": (lambda s: cen(s, m.centres(10,64,1.)), mc, .05, 100),
     "MMC-10 rand": (lambda s: cen(s, m.random_centres(10,64,10.,gen(7+s))), mc, .01, 100),
     "MMC-10": (lambda s: cen(s, m.centres(10,64,10.)), mc, .01, 100),
     "MMC-100": (lambda s: cen(s, m.centres(10,64,100.)), mc, .0003, 150),
     "AT SCE": (lin, training.adversarial(pgd_loss(None), ball), .05, 60),
     "AT MMC-10": (lambda s: cen(s, m.centres(10,64,10.)), training.adversarial(pgd_loss(m.mmc), ball, loss=m.mmc), .01, 60),
    }
    return S
def train(name, seeds=3):
    make, inner, lr, epochs = spec()[name]
    st = Stack([make(s) for s in range(seeds)])
    for e in training.fit(st, (st.rows(X), st.rows(Y)) if False else (X,Y), inner, epochs=epochs, lr=lambda t: lr*min(1,10*t+.1)*(1 if t<.7 else .1), batch_size=100, optimiser=opt):
        pass
    return st, e
