# pyright: reportPrivateUsage=false
"""`import flexrnn`: quickly, and where torch has dropped names that it never promised."""

import subprocess
import sys

WITHOUT = """
import sys, warnings
import torch
import torch._decomp, torch._dynamo, torch.fx.experimental.symbolic_shapes, torch.utils.checkpoint
from torch import _C
from torch.autograd import function
from torch.fx.experimental import proxy_tensor
from torch.nn.modules import dropout
from torch.utils import _python_dispatch, _pytree

NAMES = [
    (torch, "_is_all_true"),
    (torch, "chain_matmul"),
    (torch, "_VF"),
    (_C, "ScriptFunction"),
    (_C, "_are_functorch_transforms_active"),
    (_C, "_len_torch_function_stack"),
    (_C._dynamo.eval_frame, "set_code_exec_strategy"),
    (_C._dynamo.guards, "TensorGuards"),
    (_C._functorch, "TransformType"),
    (_C._functorch, "is_legacy_batchedtensor"),
    (_C._functorch, "peek_interpreter_stack"),
    (torch._decomp, "get_decompositions"),
    (function, "_SingleLevelFunction"),
    (proxy_tensor, "get_proxy_slot"),
    (dropout, "_DropoutNd"),
    (_python_dispatch, "_disable_current_modes"),
    (_pytree, "_register_namedtuple"),
]
had = [(owner, name, getattr(owner, name)) for owner, name in NAMES if hasattr(owner, name)]
for owner, name, _ in had:
    delattr(owner, name)
import flexrnn
for owner, name, value in had:
    setattr(owner, name, value)

class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2
    @staticmethod
    def backward(ctx, g):
        return g * 2

x = torch.randn(3, 2, 4)
layer = flexrnn.LSTM(4, 5)
found = layer(x)[0]
with flexrnn.backend("reference"):
    torch.testing.assert_close(found, layer(x)[0])
warnings.simplefilter("ignore", flexrnn.FallbackWarning)
states, final = flexrnn.scan(lambda x, h: Twice.apply(x) + h, torch.zeros(2, 4), x)
torch.testing.assert_close(final, 2 * x.sum(0))
"""


def test_names_that_only_rare_paths_need() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_who_traces_nothing_does_not_wait_for_an_algebra_of_sizes() -> None:
    """Torch has SymPy for it, which takes half as long to import as torch itself does."""
    code = "import sys, flexrnn; print('sympy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("False\n", "")


def test_a_layers_first_call_does_not_either() -> None:
    code = "import sys, flexrnn; flexrnn.LSTM(3, 5); print('sympy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("True\n", "")
