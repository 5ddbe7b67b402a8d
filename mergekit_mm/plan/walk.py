"""The tensors of an output one by one, through modules, slices and layers, and the inputs' tensors for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.config import (
    ConfigReader,
    InputSliceDefinition,
    MergeConfiguration,
    OutputModuleDefinition,
    OutputSliceDefinition,
)

from mergekit_mm.checkpoints.checkpoint import TensorInfo
from mergekit_mm.errors import MergeError
from mergekit_mm.plan.inputs import Inputs
from mergekit_mm.plan.modules import Module, layers_of


@dataclass(frozen=True, eq=False)
class OutputSlot:
    """One tensor of the output before anything is decided about it."""

    name: str  # in the output's memory
    info: TensorInfo  # of the layout's tensor of this name; in a repeated or moved layer, of the original
    listed: Mapping[ModelReference, str | None]  # the inputs of the slice -> their own names; None for one without it
    reader: ConfigReader  # the part of the config that holds for the tensor

    @property
    def inputs(self) -> dict[ModelReference, str]:
        """The inputs of the slice that have the tensor -> their own names for it in memory."""
        return {model: own for model, own in self.listed.items() if own is not None}

    @property
    def base(self) -> ModelReference | None:
        """The model over which deltas are taken here."""
        base: ModelReference | None = self.reader.base_model
        return base


def output_slots(
    config: MergeConfiguration,
    inputs: Inputs,
    modules: Mapping[str, Module],
    definitions: Mapping[str, OutputModuleDefinition],
) -> Iterator[OutputSlot]:
    """Every tensor of the output: of each module the tensors before its layers, the layers, and the tensors after them.

    Raises:
        MergeError: slices take layers that the inputs do not have, or move layers of another module than the language
            model.
    """
    for name, definition in definitions.items():
        slices = definition.slices or []
        _require_layers(name, modules[name], slices)
        yield from _of_module(config, inputs, modules[name], name, definition, slices)


def _of_module(
    config: MergeConfiguration,
    inputs: Inputs,
    module: Module,
    name: str,
    definition: OutputModuleDefinition,
    slices: Sequence[OutputSliceDefinition],
) -> Iterator[OutputSlot]:
    whole = ConfigReader(config=config, t=0, module=definition)

    def slot(tensor: str, originals: Mapping[ModelReference, str], reader: ConfigReader) -> OutputSlot:
        """originals: the listed inputs -> the layout's name of the tensor that is taken from them."""
        own = {model: inputs.names[model].get(original) for model, original in originals.items()}
        return OutputSlot(tensor, inputs.tensors[next(iter(originals.values()))], own, reader)

    def slot_outside_layers(tensor: str, part: OutputSliceDefinition) -> OutputSlot:
        return slot(tensor, {source.model: tensor for source in part.sources}, whole.for_out_slice(part))

    for tensor in module.before_layers:
        yield slot_outside_layers(tensor, slices[0])
    index = 0  # of the next layer in the output
    for part in slices:
        count = part.sources[0].layer_range[1] - part.sources[0].layer_range[0]
        reader = ConfigReader(config=config, slice_out=part, t=0, module=definition)
        for offset in range(count):
            reader_of_layer = reader.with_t(offset / (count - 1) if count > 1 else 1)
            for suffix in _suffixes(name, module, part.sources, offset):
                originals = {s.model: module.name_at(s.layer_range[0] + offset, suffix) for s in part.sources}
                yield slot(module.name_at(index, suffix), originals, reader_of_layer)
            index += 1
    for tensor in module.after_layers:
        yield slot_outside_layers(tensor, slices[-1])


def _suffixes(name: str, module: Module, sources: Sequence[InputSliceDefinition], offset: int) -> Sequence[str]:
    """The names of a layer's tensors after the layer's index. MergeError unless all layers that it is made of agree."""
    indices = [source.layer_range[0] + offset for source in sources]
    if len({tuple(module.layers[index]) for index in indices}) != 1:
        raise MergeError(f"Layers {indices} of module {name} are of different kinds.")
    return module.layers[indices[0]]


def _require_layers(name: str, module: Module, slices: Sequence[OutputSliceDefinition]) -> None:
    """MergeError for slices that take layers which do not exist, or a different number of layers from each input."""
    layers = len(module.layers)
    if name != "language_model" and layers_of(OutputModuleDefinition(slices=slices)) != list(range(layers)):
        raise MergeError(
            f"slices of {name}: only layers of the language model can be repeated, moved or left out. Let "
            f"one slice take all {layers} layers, or list the module's `models:`."
        )
    for part in slices:
        if len({source.layer_range[1] - source.layer_range[0] for source in part.sources}) > 1:
            listed = ", ".join(f"{list(source.layer_range)} of {source.model}" for source in part.sources)
            raise MergeError(
                f"layer_range: all inputs of a slice must have the same number of layers; one of module {name} has "
                f"{listed}."
            )
        for source in part.sources:
            if not 0 <= source.layer_range[0] <= source.layer_range[1] <= layers:
                raise MergeError(
                    f"layer_range {list(source.layer_range)} of {source.model} in module {name} is outside its "
                    f"{layers} layers."
                )


def require_contract(
    config: MergeConfiguration,
    inputs: Inputs,
    definitions: Mapping[str, OutputModuleDefinition],
    unlisted: Sequence[str],
) -> None:
    """Refuse slices whose inputs the method does not take: one is listed twice, there are too many or few, or no base.

    Raises:
        MergeError: such a slice, with its inputs and advice.
    """
    for name, definition in definitions.items():
        for index, part in enumerate(definition.slices or () if name not in unlisted else ()):
            counts = Counter(inputs.identity(source.model) for source in part.sources)
            if twice := [str(s.model) for s in part.sources if counts[inputs.identity(s.model)] > 1]:
                again = f", again as {twice[1]}" if twice[1] != twice[0] else " under two spellings"
                raise MergeError(f"{twice[0]} is listed twice{again}; name each input once.")
            where = f" in slice {index} of {name}" if len(definition.slices or ()) > 1 else ""
            _require_accepted(config, part, where)


def _require_accepted(config: MergeConfiguration, part: OutputSliceDefinition, where: str) -> None:
    """MergeError if the merge method does not take the inputs of a slice; `where` says in the message which slice."""
    method = merge_methods.get(config.merge_method)
    models, base = [source.model for source in part.sources], part.base_model or config.base_model
    try:
        method.validate_inputs(models, base)
    except ValueError as error:
        refusal = str(error).removeprefix("Merge method ")
        listed = ", ".join(f"{model} (base_model)" if model == base else str(model) for model in models)
        advice = ""
        if base is not None:
            counted = "is an input like any other: leave it out" if base in models else "must be among them: add it"
            advice = f" The base_model {counted}, or choose another merge_method."
        raise MergeError(f"{method.spec.name}: {refusal}{where}. The inputs are {listed}.{advice}") from error
