"""Examples from TensorFlow Datasets without TensorFlow: array_record files, `as_data_source`."""

import numpy as np

from jaxalign.errors import UserError


class TfdsSource:
    """A prepared TFDS data set (`file_format="array_record"`) as a source.

    Text features become `str`, scalars Python numbers; tensors stay arrays.

    Args:
        name: registered or on-disk name, with an optional config and version: "name",
            "name/config", "name:1.0.0".
        split: TFDS split expression, e.g. "train", "train[:90%]".
        data_dir: folder that holds the prepared data; TFDS's default (~/tensorflow_datasets) if
            None.

    Raises UserError: tensorflow-datasets is not installed, unknown data set or split, data not
    prepared, or prepared in a file format that needs TensorFlow.
    """

    def __init__(self, name: str, split: str = "train", data_dir: str | None = None):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise UserError(f"reading tfds:{name} needs tensorflow-datasets (pip install): {error}") from error
        self.name = f"tfds:{name} split {split}"
        place = data_dir or "the default data_dir"
        try:
            builder = tfds.builder(name, data_dir=data_dir)
        except (ValueError, AssertionError, ImportError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"TFDS cannot open {name!r} in {place}: {reason}") from error
        if not builder.is_prepared():
            raise UserError(
                f"TFDS data set {name!r} is not prepared in {builder.data_path}; point data_dir at "
                'prepared data, or run its download_and_prepare() with file_format="array_record"'
            )
        file_format = getattr(builder.info.file_format, "value", builder.info.file_format)
        if file_format != "array_record":
            raise UserError(
                f"{builder.data_path} is stored as {file_format}, which only TensorFlow reads; "
                'prepare it again with file_format="array_record"'
            )
        try:
            self._source = builder.as_data_source(split=split)
        except (ValueError, KeyError) as error:
            known = ", ".join(builder.info.splits)
            raise UserError(f"TFDS data set {name!r} has no split {split!r}; it has {known}") from error
        self._features = builder.info.features
        self._text = tfds.features.Text

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        return self._plain(self._source[int(index)], self._features)

    def where(self, index: int) -> str:
        return f"{self.name} row {index}"

    def _plain(self, value, feature):
        # The feature decides what is text: bytes of an encoded image must stay bytes.
        if isinstance(value, dict):
            return {key: self._plain(item, feature[key]) for key, item in value.items()}
        inner = getattr(feature, "feature", None)  # a Sequence feature
        if inner is not None:
            return [self._plain(item, inner) for item in value]
        if isinstance(value, bytes) and isinstance(feature, self._text):
            return value.decode("utf-8")
        if isinstance(value, np.generic):
            return value.item()
        return value
