r"""Writes a benchmark as the TFDS data set `cotir_bench`, by itself or as a Beam pipeline.

The samples and their order are the same, whether `build_bench` writes them shard by shard or
Beam does, on one machine or on many:

    pip install '.[dataflow]'
    pip wheel --no-deps --wheel-dir=dist . && echo gcsfs > dist/gcsfs.txt
    cotir bench build --photos=gs://BUCKET/photos --out=gs://BUCKET/bench --samples=70000 --beam=" \
        --runner=DataflowRunner --project=PROJECT --region=REGION \
        --temp_location=gs://BUCKET/tmp --max_num_workers=100 \
        --extra_package=dist/cotir_jax-0.1.0-py3-none-any.whl --requirements_file=dist/gcsfs.txt"

The wheel takes the package to the machines. TensorFlow is not needed anywhere; Beam only for
`build_with_beam`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from cotir_jax import files
from cotir_jax.bench.listing import write_listing
from cotir_jax.bench.plan import (
    SPLITS,
    Job,
    Plan,
    Sample,
    listed,
    make_plan,
    make_samples,
    prompts_of,
)
from cotir_jax.bench.records import NAME, VERSION, open_split, shard_path
from cotir_jax.bench.shards import json_bytes, write_pair, write_prompts

_BEAM_SAMPLES = 16  # of a piece of work: small enough to spread over many machines


class CotirBench(tfds.core.GeneratorBasedBuilder):
    """The data set `cotir_bench`.

    Features of a sample: `key`; `deg`, the degradation's name; `hq` and `lq`, the clean
    and the degraded picture, uint8 `[size, size, 3]`, kept as PNG; `meta`, the text of
    `meta.json`. The metadata holds `counts` (folder -> samples of each split) and
    `prompts` (the prompt files' lines).

    Args:
        plan: what to generate; None only reads.
        arguments: those of TFDS, such as `data_dir`.
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, plan: Plan | None = None, **arguments: Any) -> None:
        self._plan = plan
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        metadata = {}
        if (plan := self._plan) is not None:
            counts = {split: plan.folders(split) for split in SPLITS}
            metadata = {"counts": counts, "prompts": prompts_of(plan)}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Degraded and clean photos with a scene, a degradation and a plan thought.",
            features=features(),
            # The keys are places from 0 on: files in their order allow access by place.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(metadata),
        )

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Any]:
        del dl_manager  # nothing is fetched
        if self._plan is None:
            raise ValueError("CotirBench was given no plan; see cotir_jax.bench.plan.make_plan")
        return {
            split: self._generate_examples(list(self._plan.jobs(split, _BEAM_SAMPLES)))
            for split in SPLITS
            if self._plan.names[split]
        }

    def _generate_examples(self, jobs: Sequence[Job]) -> Any:
        import apache_beam as beam

        return beam.Create(jobs) | beam.Reshuffle() | beam.FlatMap(_keyed_examples)


def features() -> tfds.features.FeaturesDict:
    """Returns the features that `CotirBench` describes."""
    text, picture = tfds.features.Text(), tfds.features.Image(encoding_format="png")
    return tfds.features.FeaturesDict(
        {"key": text, "deg": text, "hq": picture, "lq": picture, "meta": text}
    )


def _keyed_examples(job: Job) -> Iterator[tuple[int, dict[str, Any]]]:
    for at, sample in enumerate(make_samples(job)):
        yield job.position + at, _example(job, sample)


def _example(job: Job, sample: Sample) -> dict[str, Any]:
    return sample._asdict() | {"deg": job.name, "meta": json_bytes(sample.meta)}


def write_records(job: Job, samples: Iterable[Sample], path: Path) -> None:
    """Writes a job's samples as one shard, completely or not at all."""
    described = features()
    serializer = ExampleSerializer(described.get_serialized_info())
    with files.atomic_path(path) as temporary:
        # PNG does not get smaller, so it is not compressed again.
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        for sample in samples:
            example = serializer.get_tf_example(described.encode_example(_example(job, sample)))
            writer.write(example.SerializeToString(deterministic=True))
        writer.close()


def write_info(plan: Plan, folder: Path, lengths: Mapping[str, Sequence[int]]) -> None:
    """Writes TFDS's own files next to shards that `write_records` wrote.

    `lengths` are the samples of each shard, by split; `folder` is TFDS's `data_dir`.
    """
    builder = CotirBench(plan, data_dir=folder, file_format="array_record")
    splits = []
    for split, shard_lengths in lengths.items():
        if not shard_lengths:
            continue
        total = len(shard_lengths)
        paths = [shard_path(folder, split, number, total) for number in range(total)]
        template = tfds.core.ShardedFileTemplate(
            data_dir=builder.data_path,
            dataset_name=NAME,
            split=split,
            filetype_suffix="array_record",
        )
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=list(shard_lengths),
                num_bytes=sum(path.stat().st_size for path in paths),
                filename_template=template,
            )
        )
    builder.info.set_splits(tfds.core.splits.SplitDict(splits))
    builder.info.write_to_directory(builder.data_path)


def build_with_beam(
    out: Path | str,
    photos: Path | str | None = None,
    *,
    beam_options: Sequence[str] = (),
    **choices: Any,
) -> dict[str, dict[str, int]]:
    """Builds the data set as an Apache Beam pipeline; the samples are those of `build_bench`.

    A local `out` also gets `prompts/` and `test/` as files.

    Args:
        out: TFDS's `data_dir`, a folder or bucket without this data set.
        photos: folder or bucket of clean photos; by default those inside scikit-image.
        beam_options: Beam's, such as `--runner=DataflowRunner`; by default its DirectRunner.
        choices: further arguments of `plan.make_plan`.

    Returns:
        `{"train": {degradation folder: samples}, "test": {degradation folder: samples}}`.

    Raises:
        ValueError: Beam is not installed, the data set is there already, or what `make_plan`
            refuses.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ValueError("Apache Beam is not installed; pip install 'cotir_jax[beam]'") from None
    if (there := epath.Path(out) / NAME / VERSION).exists():
        raise ValueError(f"{there}: exists; name another folder or remove it")
    plan = make_plan(photos, **choices)
    builder = CotirBench(plan, data_dir=epath.Path(out), file_format="array_record")
    options = tfds.download.DownloadConfig(beam_options=PipelineOptions(list(beam_options)))
    builder.download_and_prepare(download_config=options)
    if "://" not in str(out):
        _write_files(plan, Path(out))
    return {split: plan.folders(split) for split in SPLITS}


def _write_files(plan: Plan, folder: Path) -> None:
    write_prompts(folder / "prompts", prompts_of(plan))
    if not plan.names["test"]:
        return
    source = open_split(folder, "test")
    pictures = []
    for job in plan.jobs("test", plan.counts["test"]):
        for at in range(len(job.numbers)):
            record = source[job.position + at]
            key = record["key"].decode()
            write_pair(folder / "test", key, record["hq"], record["lq"])
            pictures.append(listed(job, key, json.loads(record["meta"])))
    write_listing(pictures, folder / "test" / "test.jsonl")
