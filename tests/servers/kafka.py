"""Apache Kafka, one node in KRaft mode, from the jars in Maven Central."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.servers.base import Kind, Unavailable, free_port
from tests.servers.maven import jars

__all__ = ["Kafka"]

POM = Path(__file__).with_name("kafka.xml")
# Quick to start and small: one test after another, not throughput for days.
JAVA = ["-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
SETTINGS = """
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.retention.check.interval.ms=500
log.segment.delete.delay.ms=500
log.initial.task.delay.ms=500
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=300
"""


class Kafka(Kind):
    config_name, port = "server.properties", 9092
    hello = b"\x00\x00\x00\x0e\x00\x12\x00\x00\x00\x00\x00\x07\x00\x04test"  # ApiVersions, version 0, correlation id 7

    def __init__(self, version: str) -> None:
        self.version, self.name = version, f"kafka-{version}"

    def url(self, port: int) -> str:
        return f"kafka://127.0.0.1:{port}"

    def is_answer(self, data: bytes) -> bool:
        return data[4:10] == b"\x00\x00\x00\x07\x00\x00"  # the same id, no error

    def config(self, bind: str, port: int, options: Mapping[str, str]) -> str:
        controller = f"{bind}:{free_port()}"
        lines = dict(line.split("=", 1) for line in SETTINGS.split()) | {
            "listeners": f"PLAINTEXT://{bind}:{port},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{bind}:{port}",
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": "data",
        }
        return "".join(f"{key}={value}\n" for key, value in (lines | dict(options)).items())

    def command(self, config: str) -> list[str]:
        raise Unavailable("there is no image of Kafka")

    def local_command(self, config: str) -> list[str]:
        return [*_java(), "kafka.Kafka", config]

    def prepare(self, directory: str) -> None:
        command = ["kafka.tools.StorageTool", "format", "-t", "Y3Jhd2xidXMtdGVzdHMtMQ", "-c"]
        subprocess.run([*_java(), *command, self.config_name], cwd=directory, check=True, capture_output=True)


def _java() -> list[str]:
    program = shutil.which("java")
    if program is None:
        raise Unavailable("java is not installed")
    return [program, *JAVA, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{jars('kafka-4.1.0', POM)}/*"]
