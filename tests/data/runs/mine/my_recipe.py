"""A recipe of one's own, with a model of one's own."""

import jax
from flax import nnx

import jaxaccel as ja


class Mlp(nnx.Module):
    def __init__(self, *, width=8, classes, image_size, rngs):
        self.hidden = nnx.Linear(image_size * image_size, width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.hidden(x.reshape(x.shape[0], -1))))


def recipe():
    return ja.Recipe(name="mine", model=Mlp, data=ja.Data(name="digits"), epochs=0.1, batch_size=64)
