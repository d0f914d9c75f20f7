"""Results for the jobs of a fleet without a worker, with outcomes that a test chooses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from schemas import topics
from schemas.codec import Origin, read_job, write_result
from schemas.outcome import Outcome
from schemas.result import Result, ResultError
from schemas.settings import KafkaSettings


@contextmanager
def answering(fleet: KafkaSettings, outcome_of: dict[str, Outcome]) -> Iterator[None]:
    """Settle a result for each submitted job in transactions, as a worker would; abort one transaction first."""
    stop = threading.Event()
    consumer = KafkaConsumer(bootstrap_servers=fleet.bootstrap_servers, group_id=None)
    consumer.assign([TopicPartition(fleet.topics.requests(), number) for number in range(fleet.partitions)])
    consumer.seek_to_beginning()

    def settle(producer: KafkaProducer, record: ConsumerRecord, outcome: Outcome) -> None:
        received = read_job(record.value, record.headers, Origin("t", 0, record.offset), record.timestamp)
        error = None if outcome is Outcome.SUCCEEDED else ResultError(code="echo", message="as the test wants it")
        result = Result(
            job_id=received.job_id,
            outcome=outcome,
            error=error,
            text="42",
            custom_id=received.job.custom_id,
            created_at=1,
        )
        headers = [(topics.TENANT, received.tenant.encode())]
        producer.send(fleet.topics.results, write_result(result), record.key, headers, record.partition)

    def answer() -> None:
        producer = KafkaProducer(
            bootstrap_servers=fleet.bootstrap_servers, transactional_id=f"{fleet.topic_prefix}test", linger_ms=5
        )
        producer.init_transactions()
        aborted = False
        while not stop.is_set():
            records = [record for batch in consumer.poll(timeout_ms=100).values() for record in batch]
            if records and not aborted:
                producer.begin_transaction()
                settle(producer, records[0], Outcome.CANCELLED)
                producer.flush()
                producer.abort_transaction()
                aborted = True
            if records:
                producer.begin_transaction()
                for record in records:
                    prompt = json.loads(record.value).get("prompt", "")
                    settle(producer, record, outcome_of.get(prompt, Outcome.SUCCEEDED))
                producer.commit_transaction()
        producer.close()
        consumer.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
