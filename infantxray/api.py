"""The Python API: load a trained model, then predict, embed, explain and reconstruct."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.context import context_matrix
from data_pipeline.decode import load_image
from data_pipeline.decode.preprocessing import to_square
from data_pipeline.errors import UserError
from data_pipeline.image_inputs import Images, Path, are_arrays, listed
from data_pipeline.manifest import Records
from infantxray.evaluation import saliency
from infantxray.features.extraction import encoder_variables, pooled_map
from infantxray.models import create_encoder
from infantxray.runs.model_spec import ModelSpec
from infantxray.stage_one import restoring
from infantxray.stage_two import inference
from infantxray.stage_two.answers import Answerer, Member, load_members
from infantxray.stage_two.result import Result

PyTree = Any
_BATCH = 32
_SEXES = frozenset({"F", "M", ""})


class Model:
    """A trained model, or an ensemble of stage-two models. Made by `load`.

    Images are file paths, which are decoded as in training, or uint8 arrays of grey levels (bright
    = dense), `[B, H, W]`, `[H, W]` or a list of arrays `[H, W]`, which are resized like files. The
    images of a call are processed in batches of 32.

    Attributes:
      members: the models; all methods but `predict` use the first.
      spec: all that is needed to use the weights: classes, preprocessing, input scale, ages.
      variables: `params` and `batch_stats`, as NumPy arrays.
      step: step of the checkpoint.
      trust: calibration, prediction sets and outlier detector; None = uncalibrated.
      workdir: the workdir that it was loaded from.
    """

    def __init__(self, *members: Member):
        first = members[0]
        self.members, self.spec, self.variables = members, first.spec, first.variables
        self.step, self.trust, self.workdir = first.step, first.trust, first.folder
        self._answerers: dict[int, Answerer] = {}
        self._encoder = create_encoder(self.spec.encoder, dtype=jnp.dtype(self.spec.dtype))

    def __repr__(self) -> str:
        noun = "findings" if self.spec.multi_label else "conditions"
        kind = f"{len(self.classes)} {noun}" if self.classes else "no conditions"
        ages = "ages" if self.spec.has_age else "no ages"
        names = ", ".join(f"{m.spec.encoder} (step {m.step})" for m in self.members)
        return f"Model({names}, {kind}, {ages})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the conditions; empty for a model of stage one or of ages alone."""
        return self.spec.classes

    @property
    def encoder(self) -> tuple[Any, PyTree]:
        """The encoder as a Flax module, and its variables, for heads of your own.

            encoder, variables = model.encoder
            maps = encoder.apply(variables, x, train=False)   # strides 4, 8, 16, 32

        `x` `[B, H, W, 1]` has the input scale of `model.spec`: (image / 255 - mean) / std.
        """
        return self._encoder, encoder_variables(self.variables)

    def read(self, images: Images) -> np.ndarray:
        """Reads images as the model sees them: uint8 `[B, S, S]`.

        Raises:
          UnreadableImage: a file cannot be read.
          ValueError: there are no images, or they are neither files nor uint8 arrays of greys.
        """
        return self._read(listed(images))

    def _read(self, items: Sequence[str] | Sequence[np.ndarray]) -> np.ndarray:
        how = self.spec.preprocessing
        return np.stack(
            [
                load_image(item, how) if isinstance(item, str) else to_square(item, how)
                for item in items
            ]
        )

    def predict(
        self,
        images: Images,
        *,
        sex: str | Sequence[str] = "",
        view: str | Sequence[str] = "",
        augmentations: int = 0,
    ) -> Result:
        """Predicts conditions and ages.

        Args:
          images: files, or uint8 `[B, H, W]`, as described for `Model`.
          sex, view: of each image, or of all, such as `"F"` and `"AP"`; empty = unknown. Only
            models trained with `config.condition_on` use them.
          augmentations: slightly rotated, scaled and shifted copies, without flips, whose
            predictions are averaged with those of the image.

        Raises:
          UserError: the model is of stage one and has no heads.
          ValueError: the number of sexes or views differs from the number of images, a sex is not
            one of these, or `augmentations` is not a whole number from 0; see also `read`.
        """
        self._need_heads("predict")
        if not isinstance(augmentations, int | np.integer) or augmentations < 0:
            raise ValueError(f"augmentations is {augmentations}; expected 0 (none) or more")
        items = listed(images)
        n, context = len(items), None
        known = {"sex": sex, "view": view}
        columns = {k: [v] * n if isinstance(v, str) else list(v) for k, v in known.items()}
        for name, values in columns.items():
            if len(values) != n:
                raise ValueError(f"{len(values)} values of {name} for {n} images")
        strange = sorted({str(v) for v in columns["sex"] if str(v).strip().upper() not in _SEXES})
        if strange:
            raise ValueError(f"sex is {strange[0]!r}; expected 'F', 'M', or '' for unknown")
        if self.spec.context:
            context = context_matrix(self.spec.context, **columns)
        answerer = self._answerer(int(augmentations))
        outputs = self._map(lambda _, *batch: answerer.outputs(*batch), items, context)
        nobody = Records.create([""] * n, source="")
        answers = answerer.answers(outputs, nobody, np.full(n, -1))
        judged = answers.judgement

        def names(inside: np.ndarray) -> tuple[tuple[str, ...], ...]:
            return tuple(tuple(self.classes[k] for k in np.flatnonzero(row)) for row in inside)

        return Result(
            classes=self.classes,
            probabilities=judged.probabilities,
            age_months=answers.predictions.age_predicted_months,
            image_path=() if are_arrays(items) else tuple(map(str, items)),
            conditions=() if judged.in_set is None else names(judged.in_set),
            positive={rule: names(reached) for rule, reached in answers.positive.items()},
            age_low_months=judged.age_low_months,
            age_high_months=judged.age_high_months,
            unlike_training=judged.unlike_training,
            distance=judged.distance,
            multi_label=self.spec.multi_label,
        )

    def export(
        self, folder: Path, *, name: str = "infantxray", licence: str = "", page: bool = True
    ) -> None:
        """Writes ONNX, StableHLO, PyTorch weights, a model card and the reader page.

        Args:
          folder: output folder; see docs/export.md.
          name: name of the model.
          licence: licence of the weights, as Hugging Face lists it; empty = not stated.
          page: write `reader.html` and its examples.

        Raises:
          UserError: the model has no heads, or jax2onnx is not installed.
        """
        from infantxray.export.folder import write_export

        self._need_heads("export")
        write_export(os.fspath(folder), self.members[0], name=name, licence=licence, page=page)

    def embed(self, images: Images) -> np.ndarray:
        """The mean of the encoder's last map, float32 `[N, C]`."""
        return self._map(self._embed, listed(images))

    def explain(
        self,
        image: Path | np.ndarray,
        condition: str | None = None,
        *,
        method: str = "grad_cam",
        level: int | None = None,
    ) -> np.ndarray:
        """Saliency of a condition.

        Args:
          image: a file, or uint8 `[H, W]`.
          condition: a name of `classes`; None = the predicted one.
          method: `"grad_cam"`, or `"integrated_gradients"`.
          level: level of the encoder's pyramid, 0 (stride 4) to 3 (stride 32), for Grad-CAM; None =
            the deepest with at least six cells a side.

        Returns:
          float32 `[S, S]` in [0, 1], over the image as `read` gives it.

        Raises:
          UserError: the model has no such condition, or predicts ages alone.
          ValueError: the method or the level is unknown, or there is more than one image; see also
            `read`.
        """
        self._need_heads("explain")
        if not self.classes:
            raise UserError("explain needs a model of conditions; this one predicts ages alone")
        if condition is not None and condition not in self.classes:
            raise UserError(
                f"the model has no condition {condition!r}; it has "
                f"{', '.join(self.classes) or 'none'}"
            )
        if method not in ("grad_cam", "integrated_gradients"):
            raise ValueError(f"method is {method!r}; expected grad_cam or integrated_gradients")
        size = self.spec.preprocessing.image_size
        level = saliency.default_level(size) if level is None else level
        if level not in range(4):
            raise ValueError(f"level is {level}; expected 0 to 3")
        items = listed(image)
        if len(items) > 1:
            raise ValueError(f"explain takes one image; got {len(items)}")
        pixels = self._read(items)
        if condition is None:
            target = int(self.predict(pixels).probabilities[0].argmax())
        else:
            target = self.classes.index(condition)
        explain = saliency.Explainer(
            self._model,
            self.variables,
            mean=self.spec.input_mean,
            std=self.spec.input_std,
            level=level,
        )
        return explain(pixels[..., None], np.array([target]), method)[0]

    def reconstruct(self, images: Images) -> np.ndarray:
        """Reconstructions by the autoencoder of stage one, uint8 `[N, S, S]`.

        Raises:
          UserError: the model is not an autoencoder.
        """
        if self.spec.objective not in restoring.RECONSTRUCTING:
            raise UserError(
                "only a stage-one model with the objective l1 or denoise reconstructs images; "
                f"this is {self.spec.objective or 'a stage-two model'}"
            )
        return self._map(self._reconstruct, listed(images))

    def _need_heads(self, verb: str) -> None:
        if not self.spec.has_heads:
            raise UserError(
                f"{verb} needs a stage-two model; this one is of stage one, which can embed"
                + (" and reconstruct" if self.spec.objective in restoring.RECONSTRUCTING else "")
            )

    def _map(
        self,
        function: Callable[..., PyTree],
        items: Sequence[str] | Sequence[np.ndarray],
        context: np.ndarray | None = None,
    ) -> Any:
        """Applies a jitted function to all images, batch by batch, and to rows of `context`."""
        parts = []
        for start in range(0, len(items), _BATCH):
            pixels = self._read(items[start : start + _BATCH])
            # A few shapes: a single image, and whole batches.
            missing = -len(pixels) % _BATCH if len(items) > 1 else 0
            padded = np.pad(pixels, ((0, missing), (0, 0), (0, 0)))[..., None]
            arguments = [self.variables, padded]
            if context is not None:
                rows = context[start : start + _BATCH]
                arguments.append(np.pad(rows, ((0, missing), (0, 0))))
            outputs = jax.device_get(function(*arguments))
            parts.append(jax.tree.map(operator.itemgetter(slice(len(pixels))), outputs))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    @functools.cached_property
    def _model(self) -> Any:
        return inference.build_model(self.spec)

    def _answerer(self, augmentations: int) -> Answerer:
        if augmentations not in self._answerers:
            self._answerers[augmentations] = Answerer(self.members, augmentations=augmentations)
        return self._answerers[augmentations]

    @functools.cached_property
    def _embed(self) -> Callable[..., PyTree]:
        pooled = pooled_map(self._encoder, mean=self.spec.input_mean, std=self.spec.input_std)

        def embed(variables: PyTree, image: jax.Array) -> jax.Array:
            return pooled(encoder_variables(variables), image, jax.random.key(0))

        return jax.jit(embed)

    @functools.cached_property
    def _reconstruct(self) -> Callable[..., PyTree]:
        rebuild = restoring.reconstruct_function(self.spec)

        def reconstruct(variables: PyTree, image: jax.Array) -> jax.Array:
            return jnp.rint(rebuild(variables, image)[..., 0] * 255).astype(jnp.uint8)

        return jax.jit(reconstruct)


def load(workdir: Path | Sequence[Path], *, calibrate: bool = True) -> Model:
    """Loads a trained model, or several as an ensemble.

    An ensemble predicts mean probabilities and ages, and the union of sets and intervals. It warns
    if more than half of its models do.

    Args:
      workdir: workdir of a run of stage two (loads its best checkpoint), or of stage one (loads its
        last). A model of stage one can embed, and reconstruct if it is an autoencoder. Several
        workdirs of stage two give an ensemble.
      calibrate: calibrate probabilities and judge images, if the run has `trust.json`.

    Raises:
      UserError: the folder is not such a workdir, or has no checkpoint; or the models of an
        ensemble differ in conditions or in preprocessing.
    """
    if not isinstance(workdir, str | os.PathLike):
        folders = [os.path.expanduser(os.fspath(path)) for path in workdir]
        if not folders:
            raise UserError("no workdir was given")
        return Model(*load_members(folders, calibrate=calibrate, refit=False))
    folder = os.path.expanduser(os.fspath(workdir))
    spec = ModelSpec.read(folder)
    if spec.has_heads:
        return Model(*load_members([folder], calibrate=calibrate, refit=False))
    spec, variables, step = restoring.restore(folder)
    return Model(Member(spec, variables, None, step, folder))
