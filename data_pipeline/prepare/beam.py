"""The same shards by Apache Beam: for those who outgrow one machine and have Dataflow, Flink or Spark."""

from collections.abc import Sequence

from data_pipeline.documents import DataError
from data_pipeline.prepare.job import Job, Worker
from data_pipeline.prepare.ledger import Ledger
from data_pipeline.prepare.run import begin, finish, missing_shards


def prepare_with_beam(job: Job, options: Sequence[str] = ()) -> Ledger:
    """As `run.prepare`, with a pipeline in place of the pool.

    Args:
      job: what and where to; a folder that all workers reach.
      options: Beam's, such as "--runner=DataflowRunner"; without them it runs on this machine, slower than the pool.

    Raises:
      DataError: Beam is not installed, the folder holds something else, or too many records cannot be read.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise DataError(f"pip install 'kosmos_jax[beam]' ({error})") from error

    class Shards(beam.DoFn):
        """Prepares one shard of the reader at a time."""

        def setup(self):
            self._worker = Worker(job)

        def process(self, n):
            report = self._worker.do(n)
            yield n, report["read"]

    worker = Worker(job)
    if found := begin(job, worker.key):
        return found
    if missing := missing_shards(job.folder, len(worker.shards)):
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            # Without it the shards of one Create would stay together on one machine.
            pipeline | beam.Create(missing) | beam.Reshuffle() | beam.ParDo(Shards())
    return finish(job, worker.key, len(worker.shards))
