"""Checks that a model's condition, its modules, the data set and the settings of sampling agree."""

from diffenc.core.conditioning import conditioned_modules
from diffenc.core.model import Model
from diffenc.errors import UserError
from diffenc.interfaces import Dataset
from diffenc.registry import selector_of


def check_conditioning(model: Model, dataset: Dataset) -> None:
    """Raises UserError unless encoder, network and generative mean read the condition that the model provides."""
    parts = model.encoder, model.network, model.generative_mean
    modules = [module for part in parts for module in conditioned_modules(part)]
    label = model.conditioning.label
    for field, count in modules:
        if label is None:
            raise UserError(
                f"{field} = {count}, and the model is unconditional: bind Model.conditioning = "
                "@conditioning.by_class(), or leave it at 0"
            )
        if count != dataset.num_classes:
            raise UserError(
                f"{field} = {count}, and {selector_of(type(dataset))} has {dataset.num_classes} classes: bind it to "
                "that, or to 0 for an unconditional module"
            )
    if label is not None and not modules:
        raise UserError(
            f"Model.conditioning provides each image's {label}, and neither network, encoder nor generative mean reads it: bind "
            f"network.unet.classes = {dataset.num_classes}, or unbind Model.conditioning"
        )


def check_sample_classes(
    model: Model, dataset: Dataset, classes: tuple[int, ...] | None, guidance: float
) -> None:
    """Raises UserError unless images of these classes can be sampled with this guidance."""
    if not model.reverse_modules:
        conditional = {"sample.classes": classes, "sample.guidance": guidance or None}
        for field, value in conditional.items():
            if value is not None:
                raise UserError(
                    f"{field} = {value}: the network is unconditional; train a conditional one "
                    "(--gin_file=gin/by_class.gin), or unbind it"
                )
        return
    if classes is not None and not all(0 <= each < dataset.num_classes for each in classes):
        raise UserError(
            f"sample.classes = {classes}: {selector_of(type(dataset))} has classes 0 .. {dataset.num_classes - 1}"
        )
    # Guidance also needs x_hat(z) without a class: a network trained
    # without dropped conditions has never seen that input.
    if guidance and not model.conditioning.drop:
        raise UserError(
            f"sample.guidance = {guidance} needs a network trained on images without their class too: train one "
            "with conditioning.by_class.drop above 0"
        )
