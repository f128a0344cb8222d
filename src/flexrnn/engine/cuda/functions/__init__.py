"""Elementwise functions on blocks of float32 or float64, with torch's results at ties and limits.

What generated source calls by name, with `tl`; the table of operations says which rows are Triton's
own. They call Triton's builtins alone, none of its library, so that they are interpreted wherever
they were imported to be. A number takes the type of the block beside it, and would be float32
alone: so no name stands for one. Polynomials have the highest power first; they interpolate at
Chebyshev points, computed with 60 digits.

In float32 a card takes what is nearer to 0 than every normal number for 0 in `exp2`, `floor`,
`ceil`, `rsqrt` and `log2`, and in what is made of them. A `/` between blocks of float32 errs by up
to 2 ulp there; `div`, which a person's own division becomes, is the nearest number, as torch's is.
"""

# ruff: noqa: F403
from flexrnn.engine.cuda.functions.activations import *
from flexrnn.engine.cuda.functions.arithmetic import *
from flexrnn.engine.cuda.functions.circular import *
from flexrnn.engine.cuda.functions.error import *
from flexrnn.engine.cuda.functions.exponential import *
from flexrnn.engine.cuda.functions.logarithm import *
