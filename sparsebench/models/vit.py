"""Small vision transformers, built from timm's VisionTransformer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sparsebench.errors import UserError, bad_value
from sparsebench.models.common import check_dropout, image_shape, scaled

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def vit(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float = 1.0,
    depth: int = 6,
    dropout: float = 0.0,
    embed_dim: int = 192,
    num_heads: int = 3,
    patch_size: int = 4,
    mlp_ratio: float = 4.0,
) -> VisionTransformer:
    """Vision transformer (arXiv:2010.11929) for small images; timm's initialisation.

    Queries, keys and values of a block are one linear layer (``qkv``); attention runs through
    ``scaled_dot_product_attention``. On 32x32 images with 10 classes the defaults (half of
    ViT-Ti) have 2,693,578 parameters, ``vit_tiny`` 5,362,762, ``vit_small`` 21,342,346.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        width: multiplies the size of a head; the number of heads stays.
        depth: number of blocks.
        dropout: rate after the position embedding, in the MLPs and before the classifier.
        embed_dim: features of a token at width 1; a multiple of ``num_heads``.
        num_heads: attention heads.
        patch_size: pixels a side of a patch; must divide the image.
        mlp_ratio: hidden units of the MLPs over features of a token.

    Returns:
        The network.

    Raises:
        UserError: a value out of range, or the data are not images.
    """
    from timm.models.vision_transformer import VisionTransformer

    channels, rows, columns = image_shape(input_shape, "vit")
    if depth < 1:
        raise bad_value("model.depth", str(depth), "a whole number above 0")
    if embed_dim % num_heads:
        raise bad_value(
            "model.args.embed_dim", str(embed_dim), f"a multiple of num_heads={num_heads} is needed"
        )
    if rows % patch_size or columns % patch_size:
        raise UserError(
            f"model.args.patch_size={patch_size}: does not divide images of {rows}x{columns} pixels"
        )
    check_dropout(dropout)
    return VisionTransformer(
        img_size=(rows, columns),
        patch_size=patch_size,
        in_chans=channels,
        num_classes=num_classes,
        embed_dim=num_heads * scaled(embed_dim // num_heads, width),
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        drop_rate=dropout,
        pos_drop_rate=dropout,
        proj_drop_rate=dropout,
    )


vit_tiny = partial(vit, depth=12, embed_dim=192, num_heads=3)
vit_small = partial(vit, depth=12, embed_dim=384, num_heads=6)
