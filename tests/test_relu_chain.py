"""A chain is the model it was made from."""

import pytest
import torch
from torch import nn

from formulations.errors import InputError
from verification.relu_chain import ReluChain


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Buffer(torch.tensor(0.3))
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2))
        self.head = nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 4))

    def forward(self, x):
        x = self.body((x - self.mean) / 0.5)
        return self.head(x.view(x.size(0), -1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(x + torch.relu(self.a(x)))


MODELS = {
    "mlp": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)), (6,)),
    "linear": (nn.Linear(6, 3), (6,)),
    "image": (nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)), (1, 3, 4)),
    "nested conv": (Nested(), (1, 8, 8)),
    "relu twice": (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.ReLU(), nn.Linear(4, 2)), (3,)),
}


@pytest.mark.parametrize(("model", "shape"), MODELS.values(), ids=MODELS.keys())
def test_chain_is_the_model(model, shape):
    torch.manual_seed(0)
    model = model.double().eval()
    chain = ReluChain.from_model(model, shape)
    x = torch.randn(50, *shape, dtype=torch.float64)
    assert torch.allclose(chain(x), model(x), atol=1e-12)
    assert len(chain.widths) == len(chain.weights) - 1


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Residual(), "no chain"),
        (nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2)), "Sigmoid"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), "Softmax"),
    ],
)
def test_other_models_are_refused_by_layer(model, words):
    with pytest.raises(InputError, match=words):
        ReluChain.from_model(model, (4,))
