"""The scores of layers, asked for as far as they are needed.

A metric that removes one layer after the other takes a round for each; of a model that is to lose a quarter of its
layers most rounds are never looked at. So it is told what will be cut, where that is known before anything is measured.
"""

from compress.models.layout import Layout
from compress.plugins import Prepared
from compress.prune.interface import Unit, importance, stops_early
from compress.prune.settings import CalibrationSettings, Cut, ScoreSettings
from compress.prune.shapes import default_axes
from compress.prune.target import explicit_shape, shape_for


def layer_scores(name: str, cut: Cut | None, calibration: CalibrationSettings) -> Prepared:
    """Return the work of scoring layers by a metric for this cut, or for any if none is told or a latency decides."""
    is_known = cut is not None and cut.target.latency is None and stops_early(importance(name, ["layers"]))
    common = {key: getattr(calibration, key) for key in CalibrationSettings.model_fields}
    return Prepared("prune.scores", ScoreSettings(importance=name, cut=cut if is_known else None, **common))


def layers_left(cut: Cut | None, model: Layout, dtype_bytes: int) -> int:
    """Return how many layers stay, at least one; a cut that is not known may take all others.

    Raises `InputError` for an impossible target.
    """
    if cut is None:
        return 1
    if cut.target.is_explicit:
        return explicit_shape(model, cut.target.sizes).num_layers
    axes: tuple[Unit, ...] = cut.axes or ("layers", *default_axes(model))
    return shape_for(cut.target, model, axes, cut.align, dtype_bytes=dtype_bytes).num_layers
