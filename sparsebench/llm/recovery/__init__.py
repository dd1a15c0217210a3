"""Training of a language model after it was pruned: parts that each technique is put together from.

``spec`` has the dials, ``method`` what becomes of weights outside the masks, ``extras`` what a
layer gets beside its weight (LoRA, SLoRB, learned scales), ``learner`` the loss, ``run`` the rest.
"""
