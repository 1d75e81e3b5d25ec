"""Role embeddings: whose word a token is, told to the model by a vector added to the token's embedding.

Instructional segment embeddings of https://arxiv.org/abs/2410.09102, one table for the first layer.

B rows   T positions   D model dim   R roles
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.model.config import N_ROLES, role_embeddings_std

NOTE = (
    "the model has role embeddings: every token's embedding is the sum of the token's own and its role's "
    "(system, user, assistant, tool, other). Other programs know nothing of it: transformers loads the "
    "files, ignores model.role_embeddings.weight and so computes something else; vLLM and llama.cpp refuse "
    "the files or do the same. Only tutelage runs this model as it was trained"
)


PARAMETER = "model.role_embeddings.weight"


class RoleEmbeddings(nn.Embedding):
    """A table of R vectors, looked up as a product with one-hot rows: the same vectors, bit for bit.

    The gradient of a row is a sum over thousands of positions. Products sum in float32 and round once; a
    lookup's backward pass on CPU rounds each sum to bfloat16, and loses most of it.
    """

    def __init__(self, dim: int):
        super().__init__(N_ROLES, dim)

    def forward(self, input: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)"""
        return F.one_hot(input, N_ROLES).to(self.weight.dtype) @ self.weight


@torch.no_grad()
def initialise_roles_(table: RoleEmbeddings, init: str, *, seed: int) -> None:
    """Fill the table as `init` says: zeros, or gaussian:STD drawn by `seed` alone, whatever the device."""
    draw = torch.Generator().manual_seed(seed)
    table.weight.copy_(torch.randn(table.weight.shape, generator=draw) * role_embeddings_std(init))
