"""The products and convolutions that are computed on a GPU."""

PRODUCTS = {
    "matrices": ("ab,bc->ac", (64, 48), (48, 32)),
    "odd sizes": ("ab,bc->ac", (7, 13), (13, 5)),
    "large odd sizes": ("ab,bc->ac", (333, 517), (517, 129)),
    "a long sum": ("ab,bc->ac", (33, 4608), (4608, 64)),
    "a vector": ("a,ab->b", (64,), (64, 32)),
    "tokens": ("abc,cd->abd", (2, 197, 384), (384, 64)),
    "heads to be made": ("btw,whd->bthd", (2, 197, 64), (64, 4, 16)),
    "heads to be joined": ("bthd,hdw->btw", (2, 197, 4, 16), (4, 16, 64)),
    "batched": ("eab,ebc->eac", (3, 33, 48), (3, 48, 17)),
}
"""Subscripts and the shapes of inputs and weights."""
ACTIVATIONS = {
    "scores": ("bqhd,bkhd->bhqk", (2, 197, 3, 64), (2, 197, 3, 64)),
    "values": ("bhqk,bkhd->bqhd", (2, 3, 197, 197), (2, 197, 3, 64)),
}
"""The two products of attention."""
CONVS = {
    "forward": ((4, 14, 14, 64), (3, 3, 64, 96), {}),
    "a long sum": ((1, 7, 7, 512), (3, 3, 512, 64), {}),
    "strided": ((4, 15, 14, 32), (3, 3, 32, 64), {"window_strides": (2, 2)}),
    "stem": ((2, 32, 32, 3), (7, 7, 3, 16), {"window_strides": (2, 2)}),
    "3 channels": ((2, 32, 32, 3), (3, 3, 3, 16), {}),
    "patches": ((2, 32, 32, 3), (8, 8, 3, 32), {"window_strides": (8, 8), "padding": "VALID"}),
    "5 to 7 channels": ((2, 9, 9, 5), (3, 3, 5, 7), {}),
    "pointwise": ((4, 7, 7, 64), (1, 1, 64, 40), {}),
    "pointwise and strided": ((4, 8, 7, 64), (1, 1, 64, 40), {"window_strides": (2, 2)}),
    "a window larger than the result": ((3, 7, 7, 32), (5, 5, 32, 16), {"padding": "VALID"}),
    "the whole image": ((3, 4, 4, 32), (4, 4, 32, 16), {"padding": "VALID"}),
    "dilated": ((2, 12, 12, 32), (3, 3, 32, 16), {"rhs_dilation": (2, 2)}),
    "transposed": ((2, 6, 6, 32), (3, 3, 32, 16), {"padding": ((2, 1), (2, 1)), "lhs_dilation": (2, 2)}),
    "grouped": ((2, 8, 8, 32), (3, 3, 8, 48), {"feature_group_count": 4}),
    "depthwise": ((2, 8, 8, 32), (3, 3, 1, 32), {"feature_group_count": 32}),
    "1-D": ((2, 33, 32), (5, 32, 16), {"dimension_numbers": ("NHC", "HIO", "NHC")}),
    "3-D": ((1, 6, 7, 6, 16), (3, 3, 3, 16, 8), {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")}),
    "NCHW": ((2, 32, 10, 9), (16, 32, 3, 3), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
}
"""Shapes of images and kernels, and options."""
